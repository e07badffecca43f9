"""Renderings of the metrics, which requests share: eight clients that ask all the time would slow down chats."""

from __future__ import annotations

import asyncio
import time

from service import metrics

__all__ = ["Scrapes"]

_PERIOD = 0.2  # seconds from one rendering to the next, on average, however many ask
_BURST = 10  # that may follow each other at once


class Scrapes:
    """Renders about five times a second at most. What is returned was rendered after it was asked for."""

    def __init__(self) -> None:
        self._next: asyncio.Task[bytes] | None = None
        self._paid_until = 0.0  # CLOCK_MONOTONIC, in seconds: each rendering takes a period of its own

    async def take(self) -> bytes:
        """Return the metrics of all workers, in Prometheus' text format."""
        if self._next is None:
            self._next = asyncio.create_task(self._render())
        return await asyncio.shield(self._next)

    async def _render(self) -> bytes:
        now = time.monotonic()
        self._paid_until = max(now, self._paid_until) + _PERIOD
        await asyncio.sleep(self._paid_until - now - _BURST * _PERIOD)
        self._next = None  # who asks from now on gets a later one
        metrics.flush()
        return await asyncio.to_thread(metrics.render)
