"""Reading weights to a device through a few buffers: bit for bit what the files hold. The CUDA path, on the CPU."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.model import device_reader, weights
from service.model.release import ReleaseError

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.float8_e4m3fn]

shapes = st.lists(st.integers(0, 7), max_size=3)
layouts = st.lists(st.lists(st.tuples(st.sampled_from(DTYPES), shapes), max_size=6), min_size=1, max_size=3)
"""The dtype and shape of each tensor of each shard."""


def tensor(dtype: torch.dtype, shape: Sequence[int], seed: int) -> Tensor:
    """A tensor of random bytes, NaNs of every kind among them."""
    torch.manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, tuple(shape), dtype=torch.uint8).bool()
    size = int(torch.tensor(shape).prod().item()) * dtype.itemsize if len(shape) else dtype.itemsize
    return torch.randint(0, 256, (size,), dtype=torch.uint8).view(dtype).reshape(tuple(shape))


def written(directory: Path, layout: Sequence[Sequence[tuple[torch.dtype, Sequence[int]]]]) -> list[Path]:
    """Write the shards of a layout."""
    shards = []
    for number, entries in enumerate(layout):
        shards.append(directory / f"{number}.safetensors")
        named = {f"{number}.{place}": tensor(*entry, seed=place) for place, entry in enumerate(entries)}
        save_file(named, shards[-1])
    return shards


def raw(one: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return one.dtype, one.shape, one.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def expected(shards: Sequence[Path]) -> dict[str, Any]:
    return {name: raw(one) for shard in shards for name, one in load_file(shard).items()}


@settings(max_examples=60, deadline=None)
@given(layouts, st.integers(1, 70), st.integers(1, 4))
def test_tensors_are_those_of_the_files(layout: Any, piece: int, threads: int) -> None:
    """Whatever the dtypes, shapes, shards, size of a piece and number of threads; every byte is reported once."""
    with tempfile.TemporaryDirectory() as directory:
        shards, counts = written(Path(directory), layout), list[int]()
        state = device_reader.read(shards, CPU, None, counts.append, threads=threads, piece=piece)
        assert {name: raw(one) for name, one in state.items()} == expected(shards)
        assert sum(counts) == sum(one.nbytes for one in state.values())


@settings(max_examples=20, deadline=None)
@given(layouts, st.integers(1, 70))
def test_floating_point_is_converted(layout: Any, piece: int) -> None:
    """Tensors of floating point get the dtype that is asked for, others stay as they are."""
    with tempfile.TemporaryDirectory() as directory:
        shards = written(Path(directory), layout)
        state = device_reader.read(shards, CPU, torch.bfloat16, lambda _: None, threads=2, piece=piece)
        for shard in shards:
            for name, one in load_file(shard).items():
                assert raw(state[name]) == raw(one.to(torch.bfloat16) if one.is_floating_point() else one)


class LateLink(device_reader.Link):
    """Copies that are carried out when somebody waits for them, as those of a stream may be."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self._begun: list[tuple[Tensor, Tensor]] = []
        self._lock = threading.Lock()

    def copy(self, target: Tensor, source: Tensor) -> None:
        with self._lock:
            self._begun.append((target, source))

    def mark(self) -> Callable[[], object]:
        return self._end

    def _end(self) -> None:
        with self._lock:
            while self._begun:
                target, source = self._begun.pop(0)
                target.copy_(source)


@settings(max_examples=20, deadline=None)
@given(layouts, st.integers(1, 70), st.integers(1, 3))
def test_a_buffer_is_not_filled_again_before_it_was_copied(layout: Any, piece: int, threads: int) -> None:
    """The tensors are right however late the copies are carried out, and complete when the call returns."""
    with tempfile.TemporaryDirectory() as directory:
        shards = written(Path(directory), layout)
        state = device_reader.read(shards, CPU, None, lambda _: None, threads=threads, piece=piece, link=LateLink())
        assert {name: raw(one) for name, one in state.items()} == expected(shards)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    [path] = written(tmp_path, [[(torch.float32, [100]), (torch.bfloat16, [33])]])
    return path


def test_short_reads_are_continued(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may return fewer bytes than were asked for."""
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, at: preadv(file, [views[0][:7]], at))
    state = device_reader.read([shard], CPU, None, lambda _: None, piece=64)
    assert {name: raw(one) for name, one in state.items()} == expected([shard])


def _shortened(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size - 5)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_shortened, "damaged or truncated"),
        (lambda shard: shard.write_bytes(b"<html>"), "damaged or truncated"),
        (lambda shard: shard.write_bytes(b""), "damaged or truncated"),
        (Path.unlink, "cannot be read: No such file"),
    ],
)
def test_a_damaged_file_is_named(shard: Path, damage: Callable[[Path], object], why: str) -> None:
    """Truncated, not safetensors, empty or missing: ReleaseError with the file."""
    damage(shard)
    with pytest.raises(ReleaseError, match=rf"0\.safetensors .*{why}|0\.safetensors {why}"):
        device_reader.read([shard], CPU, None, lambda _: None, piece=64)


def test_a_file_that_is_truncated_meanwhile_is_named(shard: Path) -> None:
    """A mapped file would end the process with SIGBUS; no further piece is read."""
    counts: list[int] = []

    def advance(count: int) -> None:
        counts.append(count)
        os.truncate(shard, 300)

    with pytest.raises(ReleaseError, match=r"0\.safetensors is damaged or truncated: it ends .* bytes too early"):
        device_reader.read([shard], CPU, None, advance, threads=1, piece=64)
    assert sum(counts) <= 300


def test_an_error_of_the_disk_is_named(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO while a piece is read."""

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(ReleaseError, match=r"0\.safetensors cannot be read: Input/output error"):
        device_reader.read([shard], CPU, None, lambda _: None)


def test_only_the_cpu_maps_files(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device is read to through buffers, with progress in shares of all files."""
    asked: list[tuple[torch.device, torch.dtype | None]] = []

    def read(_: object, device: torch.device, dtype: torch.dtype | None, advance: Callable[[int], None]) -> Any:
        asked.append((device, dtype))
        advance(shard.stat().st_size // 2)
        return {}

    monkeypatch.setattr(device_reader, "read", read)
    progress: list[tuple[str, float]] = []
    weights.read([shard], torch.device("meta"), torch.float16, lambda step, share: progress.append((step, share)))
    weights.read([shard], CPU, None, lambda *_: None)
    assert asked == [(torch.device("meta"), torch.float16)]
    [(step, share)] = progress
    assert (step, round(share, 1)) == ("reading weights", 0.5)
