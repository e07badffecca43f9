"""The engine: continuous batching on transformers' own forward pass.

Read `core.py` first: `Core.step` schedules, runs, samples, emits. A `Sequence` is one request; the `Scheduler` gives it
a row of the `SlotCache` and decides what the next step takes in; the `Runner` runs the model on that; the `Sampler`
chooses a token for every row at once. `ModelEngine` puts a thread around it and streams to asyncio. What it holds:

1. The tokens of a request do not depend on what else is in the batch (in fp32; sums in bf16 differ with its shape).
2. Whoever has a row can finish: no row is promised more than it holds. What can never fit is refused.
3. One request that raises takes only itself down, and one that its client has left frees its row within two steps.
"""

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
