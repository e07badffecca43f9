"""Threads that give each address a share of the time: no client takes the time of others by asking for more."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from service.fairness.budget import Exhausted
from service.fairness.client import Client
from service.fairness.timed_pool import BURST, MAX_WAITING, TimedPool
from tests import virtual_time

A, B = Client("10.0.0.1"), Client("10.0.0.2")
SHARE = 0.1


class Work:
    """Functions that take time of their thread by a clock of their own."""

    def __init__(self) -> None:
        self.used = 0.0
        self.done: list[str] = []
        self._running = threading.Lock()

    def __call__(self, seconds: float, name: str = "") -> None:
        assert self._running.acquire(blocking=False), "two at a time"
        self.used += seconds
        self.done.append(name)
        self._running.release()

    def clock(self) -> float:
        return self.used


@given(
    requests=st.lists(st.lists(st.sampled_from([0.001, 0.01, 0.05]), min_size=1, max_size=20), min_size=8, max_size=12),
    keys=st.integers(1, 3),
)
@settings(max_examples=20, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
def test_an_address_has_its_share_of_the_time(requests: list[list[float]], keys: int) -> None:
    """However many requests and keys it has, one function is called at a time, within the share, and all are called."""

    async def scenario() -> None:
        work = Work()
        loop = asyncio.get_running_loop()
        pool = TimedPool(4, "test", SHARE, clock=loop.time, thread_clock=work.clock)

        async def ask(number: int, costs: list[float]) -> None:
            calls = pool.calls(A._replace(key=str(number % keys)))
            for seconds in costs:
                await calls.run(work, seconds)
                assert work.used <= BURST + SHARE * loop.time() + 0.05 + 1e-9

        await asyncio.gather(*(ask(number, costs) for number, costs in enumerate(requests)))
        assert len(work.done) == sum(map(len, requests))
        pool.close()

    virtual_time.run(scenario())


def test_others_do_not_wait_for_addresses_without_time() -> None:
    """Those that have used their time wait, under whatever keys they ask, and however many they are; others go on."""

    async def scenario() -> None:
        work = Work()
        pool = TimedPool(2, "test", SHARE, clock=lambda: 0, thread_clock=work.clock)
        busy = [Client(f"10.0.1.{number}", key) for number in range(10) for key in "xy"]
        for client in busy[::2]:
            await asyncio.wait_for(pool.run(client, work, 1000, "a"), 10)
        flood = [asyncio.create_task(pool.run(client, work, 0, "a")) for client in busy]
        for _ in range(5):
            await asyncio.wait_for(pool.run(B, work, 0, "b"), 10)
        assert work.done == [*"aaaaaaaaaa", *"bbbbb"]
        for task in flood:
            task.cancel()
        pool.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_address_has_one_thread_and_its_keys_take_turns(cancelled: bool) -> None:
    """A function that has begun keeps the turn until it returns, also when its client has gone."""

    async def scenario() -> None:
        pool = TimedPool(2, "test", 1)
        begun, proceed = threading.Event(), threading.Event()
        order: list[str] = []

        def block() -> None:
            begun.set()
            proceed.wait()
            order.append("first")

        async def ask(key: str) -> None:
            await pool.run(A._replace(key=key), order.append, key)

        first = asyncio.create_task(pool.run(A, block))
        await asyncio.to_thread(begun.wait)
        tasks = [asyncio.create_task(ask(key)) for key in "xxxy"]
        tasks[1].cancel() if cancelled else None
        first.cancel() if cancelled else None
        await pool.run(B, order.append, "other")
        assert order == ["other"]
        proceed.set()
        await asyncio.gather(first, *tasks, return_exceptions=True)
        assert order == ["other", "first", *("xyx" if cancelled else "xyxx")]
        pool.close()

    asyncio.run(scenario())


def test_a_client_that_waits_too_often_is_refused_before_any_work() -> None:
    """What it began before goes on, and another key of its address is not refused."""

    async def scenario() -> None:
        pool = TimedPool(2, "test", 1)
        proceed = threading.Event()
        admitted = pool.calls(A)
        first = asyncio.create_task(pool.run(A, proceed.wait))
        await asyncio.sleep(0)
        tasks = [asyncio.create_task(pool.calls(A).run(time.thread_time)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Exhausted):
            pool.calls(A)
        pool.calls(A._replace(key="another"))
        pool.calls(B)
        tasks.append(asyncio.create_task(admitted.run(time.thread_time)))
        proceed.set()
        await asyncio.gather(first, *tasks)
        pool.calls(A)
        pool.close()

    asyncio.run(scenario())


def test_an_error_is_raised_and_takes_time_too() -> None:
    """Requests that fail are counted as others are."""

    async def scenario() -> None:
        work = Work()
        loop = asyncio.get_running_loop()
        pool = TimedPool(2, "test", SHARE, clock=loop.time, thread_clock=work.clock)

        def fail() -> None:
            work(BURST)
            raise ZeroDivisionError

        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await pool.run(A, fail)
        assert loop.time() >= BURST / SHARE
        pool.close()
        for _ in range(2):  # the turn of the first was given back
            with pytest.raises(RuntimeError):
                await asyncio.wait_for(pool.run(B, fail), 100)

    virtual_time.run(scenario())
