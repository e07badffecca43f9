"""Passing on many connections, in slices of time: between two of them the event loop serves the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from service.handover.fd_passing import Outcome

__all__ = ["Slices"]

_SLICE = 0.005  # seconds
_FULL_PAUSE = 0.002  # seconds in which a receiver takes more than a hundred connections of its backlog

C = TypeVar("C")


class Slices:
    """Calls `go_on` soon whenever a slice has ended before its connections did."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        self._go_on = go_on
        self._next: asyncio.Handle | None = None

    def each(self, connections: Iterable[C], move: Callable[[C], Outcome | None]) -> None:
        """Move the connections, as far as a slice goes, and until the receiver can take no more."""
        if self._next:
            self._next.cancel()
            self._next = None
        loop, end = asyncio.get_running_loop(), time.monotonic() + _SLICE
        for connection in connections:
            if move(connection) is Outcome.TRY_AGAIN:
                self._next = loop.call_later(_FULL_PAUSE, self._go_on)
                return
            if time.monotonic() >= end:
                self._next = loop.call_soon(self._go_on)
                return
