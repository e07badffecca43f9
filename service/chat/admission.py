"""Admission of requests to the engine, which is paused while the model's weights are replaced.

A request is admitted once for all of its answers, and its ticket names the version of the weights that produce them.
While admission is paused new requests wait; those admitted before are answered. Therefore no request mixes two weight
sets, neither between its images and its text nor between its answers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.identity import Identity

__all__ = ["Admission", "Ticket"]


class Ticket:
    """One admitted request. `version` is that of the weights that answer it."""

    def __init__(self, admission: Admission, version: str, answers: int) -> None:
        self.version = version
        self._admission = admission
        self._pending = answers
        admission.pending += answers

    def started(self) -> None:
        """Record that the engine has started one more answer; the engine's usage accounts for it from now on."""
        if self._pending:
            self._pending -= 1
            self._admission.pending -= 1

    def release(self) -> None:
        """Give up the answers that the engine has not started."""
        while self._pending:
            self.started()


class Admission:
    """Admits every request at once unless paused. All calls must come from the thread of one event loop.

    `pending` is the number of admitted answers that the engine has not started.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.paused = False
        self.pending = 0

    @property
    def waiting(self) -> int:
        """Number of requests that wait to be admitted."""
        return len(self._waiting)

    def pause(self) -> None:
        """Block new requests."""
        self.paused = True

    def resume(self) -> None:
        """Admit waiting requests in order of arrival, and new ones at once."""
        self.paused = False
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    @asynccontextmanager
    async def admit(self, answers: int) -> AsyncIterator[Ticket]:
        """Wait until admission is not paused, then yield the ticket of a request for that many answers."""
        while self.paused:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            finally:
                self._waiting.remove(waiter)
        ticket = Ticket(self, self._identity.version, answers)
        try:
            yield ticket
        finally:
            ticket.release()
