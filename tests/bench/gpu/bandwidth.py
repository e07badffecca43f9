"""The bandwidths that limit decoding and loading, measured by large copies and reads."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.gpu.releases import Plan, shards
from tests.bench.gpu.report import Report

__all__ = ["measure", "read_all", "read_rate"]

_THREADS = 8
_CHUNK = 16 << 20  # bytes of one read
_PAGEABLE = {"cuda": 1 << 30, "cpu": 64 << 20}  # bytes of one copy


def measure(plan: Plan, report: Report) -> None:
    """Measure the memory of the device, the link to it, and reading of a release's weights."""
    import torch

    from tests.bench import device as gpu

    device = torch.device(plan.device)
    with report.step("copies on the device, and to it"):
        memory, pinned = gpu.bandwidths(device)
        host = torch.ones(_PAGEABLE[device.type], dtype=torch.uint8)
        target = torch.empty_like(host, device=device)
        pageable = host.nbytes / gpu.best_seconds(lambda: target.copy_(host), device)
    report.figure("bandwidth.device", memory / 1e9)
    report.figure("bandwidth.pageable", pageable / 1e9)
    report.figure("bandwidth.pinned", pinned / 1e9)
    for name, is_cached in (("bandwidth.disk", False), ("bandwidth.page_cache", True)):
        with report.step("read of the weights" + (", again" if is_cached else "")):
            rate = read_rate(shards(plan), is_cached=is_cached)
        report.figure(name, rate / 1e9)


def read_rate(files: list[Path], *, is_cached: bool) -> float:
    """Return the bytes a second of reading `files`; unless `is_cached`, from the disk.

    Pages are dropped without privileges, which the kernel may not do for all of them; a tmpfs has no others.
    """
    if not is_cached:
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    started = time.perf_counter()
    size = read_all(files)
    return size / (time.perf_counter() - started)


def read_all(files: list[Path]) -> int:
    """Read `files` with several threads, piece by piece; returns their size in bytes."""
    pieces = [(file, start) for file in files for start in range(0, file.stat().st_size, _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(_read, (pieces[number::_THREADS] for number in range(_THREADS))))


def _read(pieces: list[tuple[Path, int]]) -> int:
    buffer, size = bytearray(_CHUNK), 0
    for file, start in pieces:
        with file.open("rb", buffering=0) as reader:
            reader.seek(start)
            size += reader.readinto(buffer)
    return size
