"""Who holds a claim: a process of this boot, told from any later one that is given its number."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from service.contract.processes import birth, lives

__all__ = ["myself", "owner_lives"]


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def name(pid: int) -> str:
    """The name under which a process holds claims: boot, pid, and start in clock ticks since boot."""
    return f"{_boot()}/{pid}/{birth(pid)}"


def myself() -> str:
    """The name of this very process."""
    return name(os.getpid())


def owner_lives(owner: str) -> bool:
    """Whether the owner can still do what it claimed."""
    boot, pid, born = owner.split("/")
    return boot == _boot() and born.isdecimal() and lives(int(pid), int(born))
