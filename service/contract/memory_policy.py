"""The table `[memory]` of `glm.toml`: how the memory of a device is divided between the copies of a model on it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from service.contract import regular_file
from service.contract.devices import Devices, Gpu

__all__ = ["Copies", "MemoryPolicy", "parse", "read"]

Copies = Literal["auto", 1, 2]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class MemoryPolicy:
    """How much of a device a slot may take."""

    copies: Copies = "auto"
    """How many copies a GPU is to hold: the default KV cache leaves room for the others. `auto`: 2 where they fit."""
    limit: int | None = None
    """Bytes that both slots together may take of the device; None: all of it."""

    def on(self, gpu: Gpu | None, devices: Devices) -> MemoryPolicy:
        """Return the policy for one GPU, for the host without one: a GPU of one slot alone need not hold two copies."""
        return replace(self, copies=1) if gpu and not devices.is_shared(gpu) else self


def parse(document: object) -> MemoryPolicy:
    """Make a policy of the table; raises ValueError that names the key at fault."""
    if not isinstance(document, dict):
        raise ValueError("it is not a table")  # noqa: TRY004  (bad data, not a bad call)
    if unknown := sorted(document.keys() - {"copies", "limit"}):
        raise ValueError(f"{unknown[0]} is not one of its keys: copies and limit")
    copies = document.get("copies", "auto")
    if isinstance(copies, bool) or copies not in ("auto", 1, 2):
        raise ValueError(f'copies is {repr(copies)[:100]}, not "auto", 1 or 2')
    limit = document.get("limit")
    return MemoryPolicy(copies, None if limit is None else _bytes(limit))


def read(path: Path) -> MemoryPolicy:
    """Read the table from `glm.toml`; the defaults without it. Raises OSError or ValueError."""
    try:
        text = regular_file.read(path, follow=True).decode()
    except (FileNotFoundError, NotADirectoryError):
        return MemoryPolicy()
    try:
        return parse(tomllib.loads(text).get("memory", {}))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _bytes(size: object) -> int:
    """Return a number of bytes, or a size such as "40GiB" or "1.5 TB", in bytes."""
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if found is None:
        raise ValueError(f'limit is {repr(size)[:100]}, not a size such as "40GiB"')
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[(found[2] or "").lower()])
