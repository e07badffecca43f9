"""How fast clients may send: to take bytes in costs time that every other request needs, too."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.fairness.buckets import TokenBuckets

__all__ = ["ReadRate"]

_BURST = 0.25  # seconds: bytes that a client may send at once, by its rate


class ReadRate(TokenBuckets):
    """Token buckets that are filled with `rate` bytes a second."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(rate, rate * _BURST, clock)
