"""The engine: continuous batching on transformers' own forward pass."""

from service.engine.protocol import (
    Delta,
    Engine,
    Finish,
    Priority,
    PromptTooLong,
    Refused,
    Sampling,
    TokenLogprob,
    Usage,
    WaitedTooLong,
)

__all__ = [
    "Delta",
    "Engine",
    "Finish",
    "Priority",
    "PromptTooLong",
    "Refused",
    "Sampling",
    "TokenLogprob",
    "Usage",
    "WaitedTooLong",
]
