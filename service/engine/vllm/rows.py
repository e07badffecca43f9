"""Which request vLLM is given next: those of interactive clients first, in turn between clients.

vLLM would run requests in the order in which they arrive, whoever sent them. It is given as many as it runs at a time;
the others wait here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.engine.protocol import Priority, QueueTimeout
from service.fairness.client import Client
from service.fairness.shares import Shares

__all__ = ["Rows"]


@dataclass(eq=False)
class _Turn:
    client: Client
    priority: Priority
    came: asyncio.Event = field(default_factory=asyncio.Event)


class Rows:
    """`count` rows. All calls must come from one event loop.

    `client_rows` is the part of them, from 0 to 1, that one address may hold even if no other waits.
    """

    def __init__(self, count: int, client_rows: float) -> None:
        self._count, self._most = count, client_rows * count
        self._running: list[_Turn] = []
        self._waiting: list[_Turn] = []
        self._paused = False

    @property
    def running(self) -> int:
        """How many are taken."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many requests wait for one."""
        return len(self._waiting)

    @asynccontextmanager
    async def row(self, client: Client, priority: Priority, seconds: float) -> AsyncIterator[float]:
        """Hold a row for the block; yields the seconds that it was waited for.

        Raises QueueTimeout if an interactive request gets none within `seconds`.
        """
        began = time.monotonic()
        turn = _Turn(client, priority)
        self._waiting.append(turn)
        try:
            self._give()
            try:
                async with asyncio.timeout(seconds if priority == "interactive" else None):
                    await turn.came.wait()
            except TimeoutError:
                if not turn.came.is_set():
                    raise QueueTimeout(f"no row became free within {seconds:.0f} s; try again later") from None
            yield time.monotonic() - began
        finally:
            (self._running if turn.came.is_set() else self._waiting).remove(turn)
            self._give()

    def pause(self) -> None:
        """Give no row until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Give rows again."""
        self._paused = False
        self._give()

    def _give(self) -> None:
        while not self._paused and len(self._running) < self._count:
            first = [turn for turn in self._waiting if turn.priority == "interactive"] or self._waiting
            if not first:
                return
            shares = Shares(turn.client for turn in self._running if turn.priority == first[0].priority)
            turn = min(first, key=lambda waiting: shares.of(waiting.client))
            if shares.of(turn.client)[0] >= self._most:
                return
            self._waiting.remove(turn)
            self._running.append(turn)
            turn.came.set()
