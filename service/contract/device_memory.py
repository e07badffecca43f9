"""How large the KV cache of a release may be, so that a second copy of it fits on the device: plain arithmetic.

The engine computes the size of its cache by it, preflight whether a release fits: from equal numbers both get equal
results. All sizes are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from service.contract.engine_settings import EngineSettings
from service.contract.memory_policy import MemoryPolicy
from service.contract.model_shape import ModelShape

__all__ = ["LEAST_TOKENS", "PROCESS", "Copy", "Device", "Kind", "cache_tokens", "fits", "room"]

Kind = Literal["cpu", "cuda"]

PROCESS: dict[Kind, int] = {"cpu": 300 << 20, "cuda": 700 << 20}
"""A worker without its model: interpreter and torch (proportional set size, measured); the CUDA context."""

LEAST_TOKENS = 8192
"""With a smaller KV cache a release is of little use, unless the context of its model is shorter."""

_CPU_SHARE = 0.25
"""Part of the free memory of a host that the cache may take. The other slot's cache and the page cache need room, and
pages are only allocated when they are written."""
_RESERVE = 1 / 16
"""Part of a GPU that is left to captured graphs, the workspaces of libraries and the fragmentation of the allocator."""


@dataclass(frozen=True)
class Device:
    """The memory of a GPU, or of the host, as a copy finds it before it takes any."""

    kind: Kind
    total: int
    free: int
    slots: int = 0
    """What the other copies of this host hold of the rest; what remains then belongs to other programs."""


@dataclass(frozen=True)
class Copy:
    """What one copy of a release takes of its device."""

    weights: int
    process: int
    workspace: int
    """The buffers of a step, and the cache of image features."""
    kv_token: int
    """One token in the KV cache."""
    context: int
    """The most tokens of one request."""
    rows: int = 1
    """The most requests that run at a time."""
    kv_tokens: int = 0
    """The size of the cache by the settings of the release, in tokens; 0: what `cache_tokens` returns."""

    @classmethod
    def of(
        cls, shape: ModelShape, settings: EngineSettings, kind: Kind, *, weights: int, itemsize: int, workers: int = 1
    ) -> Copy:
        """Return what `workers` processes take that share one copy of the weights; `itemsize`: bytes of a number."""
        step = shape.step_bytes(settings.rows, settings.prefill_chunk, itemsize)
        return cls(
            weights,
            PROCESS[kind] * workers,
            (step + (settings.image_cache_mib << 20)) * workers,
            shape.kv_bytes(itemsize) * workers,
            shape.max_position_embeddings,
            settings.rows,
            settings.kv_tokens,
        )

    def divided(self, gpus: int) -> Copy:
        """Return the part that each of several GPUs has of it."""
        return replace(
            self,
            weights=-(-self.weights // gpus),
            workspace=-(-self.workspace // gpus),
            kv_token=-(-self.kv_token // gpus),
        )

    @property
    def least_tokens(self) -> int:
        """The smallest cache with which it is of use, in tokens."""
        return self.kv_tokens or min(LEAST_TOKENS, self.context)

    @property
    def fixed(self) -> int:
        """All but the cache."""
        return self.weights + self.process + self.workspace

    @property
    def least(self) -> int:
        """With the smallest cache with which it is of use."""
        return self.with_cache(self.least_tokens)

    def with_cache(self, tokens: int) -> int:
        """With a cache of `tokens` tokens."""
        return self.fixed + tokens * self.kv_token


def cache_tokens(copy: Copy, device: Device, policy: MemoryPolicy) -> int:
    """Return the size of the KV cache that `copy` gets on `device`, in tokens; below its least if it does not fit."""
    if copy.kv_tokens:
        return copy.kv_tokens
    if device.kind == "cpu":
        left = int((device.free - copy.weights - copy.process) * _CPU_SHARE)
    else:
        left = min(room(copy, device, policy) - copy.fixed, copy.kv_token * copy.context * copy.rows)
    return max(0, left // copy.kv_token)


def fits(copy: Copy, device: Device, policy: MemoryPolicy) -> bool:
    """Return whether `device` has room for `copy` with a cache that is of use."""
    return copy.least <= room(copy, device, policy)


def room(copy: Copy, device: Device, policy: MemoryPolicy) -> int:
    """Return the bytes that `copy` may take of `device`.

    On a GPU it is the same share, whichever slot it is in: half of what both may have, if the copy fits into that, else
    all of it; and never more than is free. Then equal copies fit beside each other, in any order, wherever two fit.
    """
    both = min(device.total, device.free + device.slots)
    if policy.limit is not None:
        both = min(both, policy.limit)
    free = max(0, min(device.free, both - device.slots))
    if device.kind == "cpu" or copy.kv_tokens:
        return free
    half = both // 2
    if policy.copies == 2 or (policy.copies == "auto" and copy.least <= _usable(half)):
        free = min(free, half)
    return _usable(free)


def _usable(size: int) -> int:
    return int(size * (1 - _RESERVE))
