"""Where requests pass on their way to the engine, and where they wait while the model is given other weights.

A request passes with all of its answers at once and is told whose weights will give them. While the turnstile is shut
nobody passes, and who passed before is answered: then there is no request whose pictures were seen, or whose answers
were given, half by these weights and half by those.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.identity import Identity

__all__ = ["Passage", "Turnstile"]


class Passage:
    """One request on its way: `version` answers it. It is under way until the engine has begun every answer."""

    def __init__(self, turnstile: Turnstile, version: str, answers: int) -> None:
        self.version = version
        self._turnstile = turnstile
        self._left = answers
        turnstile.under_way += answers

    def begun(self) -> None:
        """Note that the engine has begun one more of the answers; from here on it knows of it itself."""
        if self._left:
            self._left -= 1
            self._turnstile.under_way -= 1

    def end(self) -> None:
        """Note that the engine is asked for no more of them."""
        while self._left:
            self.begun()


class Turnstile:
    """Open, it lets everybody pass at once. Every call comes from the thread of one event loop."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._is_open = True
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.under_way = 0

    @property
    def waiting(self) -> int:
        """Requests that wait before it."""
        return len(self._waiting)

    def shut(self) -> None:
        """Let nobody pass any more."""
        self._is_open = False

    def open(self) -> None:
        """Let everybody pass, in the order in which they came."""
        self._is_open = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    @asynccontextmanager
    async def passage(self, answers: int) -> AsyncIterator[Passage]:
        """Wait until it is open, then pass with a request for so many answers."""
        while not self._is_open:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            finally:
                self._waiting.remove(waiter)
        passage = Passage(self, self._identity.version, answers)
        try:
            yield passage
        finally:
            passage.end()
