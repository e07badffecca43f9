"""Which sums of ended processes are kept: those of what still runs, and others for an hour.

A host gets new versions for years, and each has some hundred series. The sums of a version and slot go away together,
and not while a process of both runs: a part that went away earlier would look like a restart of the counter.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import mmap_dict

from service.metric_files.directory import DAMAGED, owner_of

__all__ = ["KEPT", "Sum", "is_due", "kept"]

KEPT = 3600.0
"""Seconds, many times the interval of any scraper."""

_LABELS = ("version", "slot")

_Dict: Any = mmap_dict.MmapedDict  # the library has no types


class Sum(NamedTuple):
    """A value, and the time at which an ended process was last added to it, in seconds since the epoch."""

    value: float
    changed: float


def is_due(file: Path) -> bool:
    """Return whether a file of sums is so old that some of them may have expired."""
    with suppress(FileNotFoundError):
        return time.time() - file.stat().st_mtime > KEPT
    return False


def kept(sums: dict[str, Sum], directory: Path) -> dict[str, Sum]:
    """Return the sums that have not expired, by key; those that would have, but for what runs, are as of now."""
    owners = {key: _owner(key) for key in sums}
    changed: dict[tuple[str | None, ...], float] = {}
    for key, owner in owners.items():
        changed[owner] = max(changed.get(owner, 0.0), sums[key].changed)
    now = time.time()
    expired = {owner for owner, at in changed.items() if at < now - KEPT}
    running = _running(directory) & expired if expired else set()
    return {
        # what runs may end without having counted anything, and its sums are kept from then on
        key: one._replace(changed=now) if owners[key] in running else one
        for key, one in sums.items()
        if owners[key] not in expired - running
    }


def _running(directory: Path) -> set[tuple[str | None, ...]]:
    """Return the versions and slots of all processes that run."""
    found = set()
    for path in directory.iterdir():
        if (owner := owner_of(path)) and owner.is_alive:
            with suppress(*DAMAGED):
                found |= {_owner(key) for key, _, _, _ in _Dict.read_all_values_from_file(str(path))}
    return found


def _owner(key: str) -> tuple[str | None, ...]:
    labels = json.loads(key)[2]
    return tuple(labels.get(name) for name in _LABELS)
