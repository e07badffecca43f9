"""The directory of the metrics: its lock, and the files that count in it.

| file | holds |
|---|---|
| `TYPE_PID-TICKS.db` | the values of a process; its pid and its start time, in clock ticks since boot |
| `TYPE_PID-TICKS.ended` | the same of a process that has ended |
| `TYPE_ended.db` | the sums of processes that ended before |
| `TYPE_ended.new` | new sums that are being written; does not count |
| `TYPE_ended.sum` | new sums; the `.ended` files and `TYPE_ended.db` are in them, and do not count beside them |
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from service.contract import processes

__all__ = ["DAMAGED", "SUMMED", "Owner", "counted", "is_regular", "locked", "own_name", "owner_of"]

SUMMED = ("counter", "histogram")
"""Types whose values are those of all processes that ever were; gauges are those of living ones."""

DAMAGED = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, struct.error)
"""What prometheus_client raises for a file that holds anything else."""

_OF_A_PROCESS = re.compile(r"(counter|histogram|gauge_live[a-z]*)_(\d+)(?:-(\d+))?\.db")
_WAIT = 0.5  # seconds; a file is merged or read in some milliseconds
_PAUSE = 0.005


@contextmanager
def locked(directory: Path, *, exclusively: bool = False) -> Iterator[bool]:
    """Hold the directory's lock; yields whether it is held. A process that was stopped may hold it for ever.

    A merge holds it exclusively. Scrapes, and processes that open their files, share it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _lock(descriptor, fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    deadline = time.monotonic() + _WAIT
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        else:
            return True


def own_name() -> str:
    """Return the part of a file's name that stands for the calling process. A later process of its pid has another."""
    return _name(os.getpid())


@cache
def _name(pid: int) -> str:
    return f"{pid}-{processes.start_ticks(pid)}"


class Owner(NamedTuple):
    """The type of a process's file, and the process; without a start time it is one of an earlier version of ours."""

    kind: str
    pid: int
    ticks: int | None

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        now = processes.start_ticks(self.pid)
        return now is not None and self.ticks in (None, now)


def owner_of(path: Path) -> Owner | None:
    """Return whose file it is; None if it is no file of a process."""
    match = _OF_A_PROCESS.fullmatch(path.name)
    if match is None or not is_regular(path):
        return None
    return Owner(match[1].partition("_")[0], int(match[2]), int(match[3]) if match[3] else None)


def is_regular(path: Path) -> bool:
    """Whether it is a regular file, and no symlink."""
    return path.is_file() and not path.is_symlink()


def counted(directory: Path) -> list[Path]:
    """Return the files whose values make the metrics; each value is in one of them."""
    paths = {path.name: path for path in sorted(directory.iterdir())}
    for kind in SUMMED:
        if f"{kind}_ended.sum" in paths:
            paths = {
                name: path
                for name, path in paths.items()
                if not name.startswith(f"{kind}_") or not (name.endswith(".ended") or name == f"{kind}_ended.db")
            }
    return [path for path in paths.values() if path.suffix in (".db", ".ended", ".sum") and is_regular(path)]
