"""Owners of claims: a process, named by boot id, pid and start time, which detects pid reuse."""

from __future__ import annotations

import os

from service.contract.processes import boot_id, is_alive, start_ticks

__all__ = ["current_owner", "owner_alive", "owner_of"]


def owner_of(pid: int) -> str:
    """Return the owner name of a process: boot id, pid, and start time in clock ticks since boot."""
    return f"{boot_id()}/{pid}/{start_ticks(pid)}"


def current_owner() -> str:
    """Return the owner name of the current process."""
    return owner_of(os.getpid())


def owner_alive(owner: str) -> bool:
    """Return whether the process with that owner name is still running."""
    boot, pid, ticks = owner.split("/")
    return boot == boot_id() and ticks.isdecimal() and is_alive(int(pid), int(ticks))
