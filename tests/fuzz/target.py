"""A target: something that reads bytes, its seeds, and what it may use."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Run", "Target"]

Run = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """`start` prepares the target in a directory and yields a function that reads one input.

    An exception that the function raises is a finding. `seconds` of CPU time and `mebibytes` of resident memory may be
    used by one input; wall time may be ten times as long. `generate` makes one input of at most so many bytes.
    """

    name: str
    start: Callable[[Path], AbstractContextManager[Run]]
    generate: Callable[[random.Random, int], bytes]
    seconds: float
    mebibytes: int
