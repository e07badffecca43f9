"""Threads that work on the requests of all clients, and give each a share of the processor's time."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

from service.fairness.buckets import TokenBuckets
from service.fairness.budget import Budget, Exhausted, Holding
from service.fairness.client import Client

__all__ = ["Calls", "TimedPool"]

P = ParamSpec("P")
T = TypeVar("T")

BURST = 0.1
"""Seconds of processor time that a client may use at once, after a pause."""

MAX_WAITING = 256
"""Calls of one client that may wait when it sends another request."""


class TimedPool:
    """A pool of `threads` threads that calls one function of an address at a time, its keys in turn.

    What a function takes of the processor's time is taken from a bucket of its address, which is filled with `share`
    seconds a second. If the bucket is empty, the next function of the address waits until it is not; those of others
    do not. The time for which a function waits, for the disk, a lock or the interpreter, does not count. A function
    that has begun is called to its end, also when the awaiting task is cancelled. All methods must be called in the
    event loop's thread.
    """

    def __init__(
        self,
        threads: int,
        name: str,
        share: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        thread_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._turns = Budget(sys.maxsize, 1)  # an address waits for none but itself; the executor's queue is in order
        self._times = TokenBuckets(share, BURST, clock)
        self._thread_clock = thread_clock
        self._waiting: Counter[Client] = Counter()

    def calls(self, client: Client) -> Calls:
        """Return the calls of one more request; raises Exhausted if MAX_WAITING of the client's calls wait."""
        if self._waiting[client] >= MAX_WAITING:
            raise Exhausted(by_client=True)
        return Calls(self, client)

    async def run(self, client: Client, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function in a thread when it is this client's turn, and there is time for it."""
        turn = await self._wait(client)
        spent = math.nan

        def measured() -> T:
            nonlocal spent
            began = self._thread_clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent = self._thread_clock() - began

        loop = asyncio.get_running_loop()

        def end(running: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._end, client, turn, 0.0 if running.cancelled() else spent)

        try:
            running = self._threads.submit(measured)
        except BaseException:
            turn.give_back()
            raise
        running.add_done_callback(end)
        return await asyncio.wrap_future(running)

    async def _wait(self, client: Client) -> Holding:
        self._waiting[client] += 1
        try:
            return await self._turns.wait(client)
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]

    def _end(self, client: Client, turn: Holding, spent: float) -> None:
        """Give the turn back once the address has time again."""
        pause = self._times.spend(client.address, spent)
        asyncio.get_running_loop().call_later(pause, turn.give_back) if pause else turn.give_back()

    def close(self) -> None:
        """Accept no more work, and do not wait for what is running."""
        self._threads.shutdown(wait=False)


class Calls:
    """What one request of a client calls, one function after the other."""

    def __init__(self, pool: TimedPool, client: Client) -> None:
        self._pool = pool
        self.client = client

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function in a thread of the pool; see TimedPool."""
        return await self._pool.run(self.client, function, *args, **kwargs)
