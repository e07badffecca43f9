"""Passing on many connections, in slices of time: between two of them the event loop serves the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from service.handover.clients import MovableConnection
from service.handover.fd_passing import Outcome
from service.routing.canary import Side

__all__ = ["Slices"]

_SLICE = 0.005  # seconds
_FULL_PAUSE = 0.002  # seconds in which a receiver takes more than a hundred connections of its backlog


class Slices:
    """Moves connections in passes: each tries every connection once, in as many slices as that takes.

    A slice goes on where the one before it has ended, soon, by `go_on`. Between two passes there is a tick, but for a
    receiver that had no room for all.
    """

    def __init__(self, move: Callable[[MovableConnection], Outcome | None], go_on: Callable[[], None]) -> None:
        self._move = move
        self._go_on = go_on
        self._next: asyncio.Handle | None = None
        self._pass: Iterator[MovableConnection] | None = None
        self._full: set[Side] = set()  # whose receivers had no room in this pass
        self._sent = 0  # in this pass

    def each(self, connections: Callable[[], Iterator[MovableConnection]]) -> None:
        """Move some more of the connections of this pass; if there is none, begin one with `connections`."""
        if self._next:
            self._next.cancel()
            self._next = None
        if self._pass is None:
            self._pass = connections()
            self._full, self._sent = set(), 0
        end = time.monotonic() + _SLICE
        for connection in self._pass:
            if connection.side not in self._full:
                outcome = self._move(connection)
                if outcome is Outcome.TRY_AGAIN:
                    self._full.add(connection.side)
                self._sent += outcome is Outcome.SENT
            if time.monotonic() >= end:
                self._next = asyncio.get_running_loop().call_soon(self._go_on)
                return
        self._pass = None
        if self._full and self._sent:
            self._next = asyncio.get_running_loop().call_later(_FULL_PAUSE, self._go_on)
