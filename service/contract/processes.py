"""Process identity, which detects pid reuse, and what a process has open.

The pair of pid and start time names one process of a boot. It is read from /proc, because the value is stored in files
that two programs compare: psutil derives its creation time from the wall clock, which may be set meanwhile.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["boot_id", "control_groups", "descriptors", "is_alive", "own_start_ticks", "start_ticks"]

_STATE, _START_TIME = 0, 19  # fields of /proc/PID/stat, counted after the command's name


def start_ticks(pid: int) -> int | None:
    """Return when the process was started, in clock ticks since boot; None for no process, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] == "Z" else int(fields[_START_TIME])


def own_start_ticks() -> int | None:
    """Return when the calling process was started, in clock ticks since boot."""
    return start_ticks(os.getpid())


def is_alive(pid: int, ticks: int | None) -> bool:
    """Return whether the process that had this pid and this start time is still running."""
    now = start_ticks(pid)
    return now is not None and now == ticks


def control_groups(pid: int) -> frozenset[str]:
    """Return the paths of the cgroups of a process, one for each hierarchy; none if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.split(":", 2)[2] for line in lines)


@cache
def boot_id() -> str:
    """Return the id of this boot of the machine; pids and start times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def descriptors(pid: int) -> set[str]:
    """Return what the descriptors of a process refer to, such as `socket:[1234]`; raises OSError if they are hidden."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(path))  # noqa: PTH115
    return found
