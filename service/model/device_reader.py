"""Reads safetensors files to a device: read by several threads, copied while the next pieces are read.

A piece of a file is read into one of a few host buffers, pinned for CUDA, and copied from there on a stream of its own.
`safe_open(device="cuda")` copies from pageable memory instead, one tensor after the other, which gave 0.12 of the
link's rate. On another device than CUDA the same steps run with ordinary buffers and without a stream.

Two libraries were examined. runai-model-streamer (0.17) copies to a device itself only under torch.distributed, and
takes its settings from the environment of the process. fastsafetensors (0.5) reads through pinned buffers too; it tells
its progress to tqdm alone, and without CUDA its extension replaces the copies, so that tests would run other code.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch
from safetensors import safe_open
from torch import Tensor

from service.model.checkpoint_files import errors_of
from service.model.release import ReleaseError

__all__ = ["PIECE", "THREADS", "Link", "read"]

THREADS = 8  # one copies from the page cache more slowly than the link does from pinned memory
PIECE = 8 << 20  # bytes of a buffer; there are two a thread, and torch keeps their pinned memory


@dataclass
class _Incoming:
    """A tensor of a file, from `begin` on; `missing` bytes of it have not been copied yet."""

    name: str
    begin: int
    missing: int
    shape: torch.Size
    dtype: torch.dtype
    target: Tensor | None = None
    """Its bytes on the device; allocated when the first of them arrive."""


@dataclass(frozen=True)
class _Piece:
    """Bytes of a file from `begin` on, and the tensors that have a part of them."""

    path: Path
    descriptor: int
    begin: int
    size: int
    tensors: Sequence[_Incoming]


class Link:
    """Copies of bytes to a device; here a copy has ended when the call returns."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def buffer(self, size: int) -> Tensor:
        """Return memory of the host to copy from."""
        return torch.empty(size, dtype=torch.uint8)

    def used(self) -> AbstractContextManager[object]:
        """Return a context for allocations, copies and conversions."""
        return nullcontext()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Begin to copy; `source` must not change until the copy has ended."""
        target.copy_(source, non_blocking=True)

    def mark(self) -> Callable[[], object]:
        """Return a function that waits until all copies that were begun so far have ended."""
        return lambda: None


class _CudaLink(Link):
    """Copies run on a stream of their own, from pinned memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.Stream(device)

    def buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def used(self) -> AbstractContextManager[object]:
        return self._stream

    def mark(self) -> Callable[[], object]:
        event = self._stream.record_event()
        return lambda: event.synchronize()


@dataclass
class _Buffer:
    memory: Tensor
    wait: Callable[[], object] = lambda: None
    """Waits until the last copy from it has ended."""


def read(
    shards: Sequence[Path],
    device: torch.device,
    dtype: torch.dtype | None,
    advance: Callable[[int], None],
    *,
    threads: int = THREADS,
    piece: int = PIECE,
    link: Link | None = None,
) -> dict[str, Tensor]:
    """Read all tensors of all shards to `device`; those of floating point are converted to `dtype`, if it is given.

    `advance` is called with the bytes read since the last call, by several threads. Raises ReleaseError naming the file
    at fault.
    """
    if link is None:
        link = _CudaLink(device) if device.type == "cuda" else Link(device)
    transfer = _Transfer(link, dtype, advance, buffers=2 * threads, piece=piece)
    with ExitStack() as files:
        pieces: list[_Piece] = []
        for shard in shards:
            with errors_of(shard):
                descriptor = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
                files.callback(os.close, descriptor)
                tensors = _tensors(shard, descriptor)
            transfer.state.update((one.name, transfer.empty(one)) for one in tensors if not one.missing)
            pieces += _pieces(shard, descriptor, [one for one in tensors if one.missing], piece)
        with ThreadPoolExecutor(threads, "load") as pool:
            for _ in pool.map(transfer.run, pieces):  # a failure cancels the pieces that have not been begun
                pass
    link.mark()()  # from here on the tensors may be used in any stream
    return transfer.state


def _tensors(shard: Path, descriptor: int) -> list[_Incoming]:
    """Return the tensors of a file in the order of their bytes, which the library has found to be without gaps."""
    position = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
    found = []
    with safe_open(shard, framework="pt", device="cpu") as file:
        for name in file.offset_keys():
            mapped: Tensor = file.get_tensor(name)  # maps the file and reads nothing
            found.append(_Incoming(name, position, mapped.nbytes, mapped.shape, mapped.dtype))
            position += mapped.nbytes
    return found


def _pieces(shard: Path, descriptor: int, tensors: Sequence[_Incoming], size: int) -> Iterator[_Piece]:
    """Divide the bytes of the tensors into pieces of `size` bytes."""
    if not tensors:
        return
    end, first = tensors[-1].begin + tensors[-1].missing, 0
    ends = [one.begin + one.missing for one in tensors]
    for begin in range(tensors[0].begin, end, size):
        stop = min(begin + size, end)
        while ends[first] <= begin:
            first += 1
        last = first
        while last < len(tensors) and tensors[last].begin < stop:
            last += 1
        yield _Piece(shard, descriptor, begin, stop - begin, tensors[first:last])


class _Transfer:
    """The buffers, and the tensors that have arrived."""

    def __init__(
        self, link: Link, dtype: torch.dtype | None, advance: Callable[[int], None], *, buffers: int, piece: int
    ) -> None:
        self.state: dict[str, Tensor] = {}
        self._link, self._dtype, self._advance = link, dtype, advance
        self._free: SimpleQueue[_Buffer] = SimpleQueue()  # the one whose copy began first is taken first
        for _ in range(buffers):
            self._free.put(_Buffer(link.buffer(piece)))
        self._lock = threading.Lock()

    def run(self, piece: _Piece) -> None:
        """Read a piece and begin to copy it; raises ReleaseError."""
        buffer = self._free.get()
        try:
            buffer.wait()
            with errors_of(piece.path):
                _fill(buffer.memory, piece)
            self._advance(piece.size)
            with self._lock, self._link.used():
                for tensor in piece.tensors:
                    self._copy(tensor, piece, buffer.memory)
                buffer.wait = self._link.mark()
        finally:
            self._free.put(buffer)

    def empty(self, tensor: _Incoming) -> Tensor:
        """Return a tensor on the device without elements."""
        return self._converted(torch.empty(tensor.shape, dtype=tensor.dtype, device=self._link.device))

    def _copy(self, tensor: _Incoming, piece: _Piece, memory: Tensor) -> None:
        if tensor.target is None:
            tensor.target = torch.empty(tensor.missing, dtype=torch.uint8, device=self._link.device)
        target = tensor.target
        begin = max(piece.begin, tensor.begin)
        end = min(piece.begin + piece.size, tensor.begin + len(target))
        self._link.copy(
            target[begin - tensor.begin : end - tensor.begin], memory[begin - piece.begin : end - piece.begin]
        )
        tensor.missing -= end - begin
        if not tensor.missing:
            tensor.target = None
            self.state[tensor.name] = self._converted(target.view(tensor.dtype).view(tensor.shape))

    def _converted(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if self._dtype and tensor.is_floating_point() else tensor


def _fill(memory: Tensor, piece: _Piece) -> None:
    """Read the bytes of a piece; raises ReleaseError if the file ends before."""
    view, done = memory.numpy().data, 0
    while done < piece.size:
        count = os.preadv(piece.descriptor, [view[done : piece.size]], piece.begin + done)
        if not count:
            raise ReleaseError(f"{piece.path} is damaged or truncated: it ends {piece.size - done} bytes too early")
        done += count
