"""Weights of another release, brought to where they can replace those of a running model within one copy.

Requests wait while the weights of a device are overwritten, so that the copy must be short: from the device itself, if
it has room for them, else from pinned memory of the host, at the rate of the link. Where neither has room they are
copied from the mapped files: with 7.6 instead of 55 GB/s on an H200. A model on the CPU takes over the mapped tensors,
without a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from service.engine import memory as device_memory
from service.engine.protocol import Staged
from service.engine.tensors import Weights
from service.model.release import Progress

__all__ = ["DEVICE_RESERVE", "HOST_RESERVE", "Memory", "Place", "memory_of", "place_for", "stage"]

Place = Literal["device memory", "pinned memory", "mapped files"]

ALIGNMENT = 512  # bytes; as torch aligns tensors on a device
DEVICE_RESERVE = 2 << 30
"""Bytes that stay free on the device, for what running requests allocate."""
HOST_RESERVE = 2 << 30
"""Bytes that stay free on the host, for everything else on it."""

_HOST = torch.device("cpu")

logger = logging.getLogger("gunicorn.error")


class Memory:
    """Memory of a device, and memory of the host that it copies from; here the one is as good as the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def on_device(self) -> int:
        """Free bytes of the device."""
        return device_memory.memory_of(self.device)[1]

    @property
    def on_host(self) -> int:
        """Free bytes of the host, and of the unit."""
        return device_memory.memory_of(_HOST)[1]

    def allocate(self, place: Place, size: int) -> Tensor:
        """Return a block of so many bytes; raises RuntimeError if there is none."""
        return torch.empty(size, dtype=torch.uint8, device=self.device if place == "device memory" else _HOST)

    def copying(self) -> AbstractContextManager[object]:
        """Return a context for copies, which have ended with it. Steps of the model do not wait for them."""
        return nullcontext()

    def pin(self, block: Tensor) -> None:
        """Pin a block of the host; raises RuntimeError if that is refused."""

    def unpin(self, block: Tensor) -> None:
        """Undo that."""

    def free(self, block: Tensor) -> None:
        """Free the memory of a block, whoever still refers to it."""
        block.untyped_storage().resize_(0)


class _CudaMemory(Memory):
    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.Stream(device)

    def allocate(self, place: Place, size: int) -> Tensor:
        with self._stream:
            return super().allocate(place, size)

    @contextmanager
    def copying(self) -> Iterator[None]:
        with self._stream:
            yield
        self._stream.synchronize()

    def pin(
        self, block: Tensor
    ) -> None:  # torch's pinned tensors have a power of two as size, and are never given back
        torch.cuda.check_error(_runtime().cudaHostRegister(block.data_ptr(), len(block), 0))

    def unpin(self, block: Tensor) -> None:
        torch.cuda.check_error(_runtime().cudaHostUnregister(block.data_ptr()))

    def free(self, block: Tensor) -> None:
        super().free(block)
        torch.cuda.empty_cache()  # else the block would stay with this process


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def memory_of(device: torch.device) -> Memory | None:
    """Return the memory in which weights for a model on `device` are staged; None for the CPU."""
    return _CudaMemory(device) if device.type == "cuda" else None


def place_for(size: int, memory: Memory) -> Place:
    """Return where `size` bytes of weights are staged."""
    if size + DEVICE_RESERVE <= memory.on_device:
        return "device memory"
    return "pinned memory" if size + HOST_RESERVE <= memory.on_host else "mapped files"


def stage(weights: Weights, memory: Memory | None, progress: Progress) -> Staged:
    """Copy weights to where there is room; may be called while a model runs, which it does not change.

    Without `memory`, or if it cannot be had, they stay where they are. Any other error is raised, and what was
    allocated is freed.
    """
    if memory is None:
        return Staged(weights, "memory")
    size = sum(_padded(tensor) for tensor in weights.values())
    place = place_for(size, memory)
    if place != "mapped files":
        try:
            return _copy(weights, memory.allocate(place, size), memory, place, progress)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            logger.warning("the weights cannot be staged in %s: %s", place, error)
    return Staged(weights, "mapped files")


def _copy(weights: Weights, block: Tensor, memory: Memory, place: Place, progress: Progress) -> Staged:
    """Copy the tensors into a block, one after the other."""
    staged: dict[str, Tensor] = {}
    is_pinned, end = False, 0
    try:
        with memory.copying():
            for name, tensor in weights.items():
                progress("staging", end / max(len(block), 1))
                staged[name] = block[end : end + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                staged[name].copy_(tensor)
                end += _padded(tensor)
        if place == "pinned memory":  # last: the pages are there, so that this is short
            memory.pin(block)
            is_pinned = True
        progress("staging", 1.0)
    except BaseException:
        memory.free(block)
        raise

    def release() -> None:
        staged.clear()
        if is_pinned:
            memory.unpin(block)
        memory.free(block)

    return Staged(staged, place, release)


def _padded(tensor: Tensor) -> int:
    """Return the bytes of a tensor in a block, in which each is aligned as torch would align it."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
