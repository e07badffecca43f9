"""Threads that work on the requests of all clients in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from service.fairness.budget import Budget
from service.fairness.client import Client

__all__ = ["FairPool"]

T = TypeVar("T")


class FairPool:
    """A pool of `threads` threads, at least two, of which one address uses all but one.

    A function that has begun keeps its thread until it returns, also when the awaiting task is cancelled.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._turns = Budget(threads, threads - 1)

    async def run(self, client: Client, function: Callable[..., T], *arguments: Any) -> T:
        """Call the function in a thread when it is this client's turn."""
        turn = await self._turns.wait(client)
        try:
            running = self._threads.submit(function, *arguments)
        except BaseException:
            turn.give_back()
            raise

        def end(_running: Future[T]) -> None:
            turn.give_back()

        running.add_done_callback(end)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Accept no more work, and do not wait for what is running."""
        self._threads.shutdown(wait=False)
