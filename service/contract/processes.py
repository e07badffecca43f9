"""Telling a process from another that was given its number later."""

from __future__ import annotations

from pathlib import Path

_STATE, _START = 0, 19  # fields of /proc/PID/stat, counted behind the command's name


def birth(pid: int) -> int | None:
    """When the process was started, in clock ticks since boot; None when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] == "Z" else int(fields[_START])


def lives(pid: int, born: int | None) -> bool:
    """Whether the very process that was `born` then is still there."""
    now = birth(pid)
    return now is not None and now == born
