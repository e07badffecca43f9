"""The inference engine: continuous batching on top of transformers' own forward pass.

Promises: in fp32 the tokens of a request do not depend on the rest of the batch (in bf16, rounding depends on the batch
shape); a request that gets a cache row runs to its end, and one that can never fit is refused; a request that raises
fails alone; a cancelled request frees its row within two steps. Begin with `core.py`: `Core.step` schedules, runs,
samples and emits. A `Sequence` is one request; the `Scheduler` assigns it a row of the cache and decides what the next
step computes, with as many prompt tokens as the `Pace` allows; the `Runner` runs the model on that; the `Sampler`
chooses a token for every row at once. The cache is a `SlotCache` on the CPU and a `PagedCache` on GPUs.
`ModelEngine` runs all of this in one thread and streams the results to asyncio. `protocol.py` is the interface that the
API uses; it needs neither torch nor transformers. `loader.py` selects the engine: tests may use the one without a model
in `dummy.py`.
"""

from service.engine.protocol import (
    Conversation,
    Delta,
    Engine,
    Finish,
    Grammar,
    Limits,
    Priority,
    PromptTooLong,
    QueueTimeout,
    Refused,
    Sampling,
    TokenLogprob,
    Usage,
    WorkerEngine,
)

__all__ = [
    "Conversation",
    "Delta",
    "Engine",
    "Finish",
    "Grammar",
    "Limits",
    "Priority",
    "PromptTooLong",
    "QueueTimeout",
    "Refused",
    "Sampling",
    "TokenLogprob",
    "Usage",
    "WorkerEngine",
]
