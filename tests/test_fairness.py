"""Budgets and pools: no client has more than its share, and none waits for more than a turn of each other."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.fairness.budget import Budget, Exhausted, Holding
from service.fairness.client import Client
from service.fairness.pool import FairPool

A, B, C = (Client(address) for address in "abc")


@given(
    total=st.integers(1, 10),
    share=st.integers(1, 10),
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(1, 12), st.integers(0, 3))),
)
@settings(max_examples=200, deadline=None)
def test_what_is_held_never_exceeds_the_limits(total: int, share: int, steps: list[tuple[str, str, int, int]]) -> None:
    """In any order of requests, cancellations and returns; and in the end everyone was served."""

    async def scenario() -> None:
        budget = Budget(total, share)
        waiting: list[tuple[Client, asyncio.Task[Holding]]] = []
        held: list[tuple[Client, Holding]] = []

        async def settle() -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            for entry in list(waiting):
                if entry[1].done():
                    waiting.remove(entry)
                    if not entry[1].cancelled():
                        held.append((entry[0], entry[1].result()))
            assert sum(holding.amount for _, holding in held) == budget.held <= total
            by_address = Counter[str]()
            for client, holding in held:
                by_address[client.address] += holding.amount
            assert max(by_address.values(), default=0) <= min(share, total)
            if waiting and not held:
                raise AssertionError("a request waits although nothing is held")

        for address, key, amount, action in steps:
            client = Client(address, key)
            if action == 0 and held:
                held.pop(amount % len(held))[1].give_back()
            elif action == 1 and waiting:
                waiting[amount % len(waiting)][1].cancel()
            elif action == 2:
                try:
                    held.append((client, budget.take(client, amount)))
                except Exhausted:
                    assert held
            else:
                waiting.append((client, asyncio.create_task(budget.wait(client, amount))))
            await settle()
        while held:
            held.pop()[1].give_back()
            await settle()
        assert not waiting
        assert budget.held == 0

    asyncio.run(scenario())


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_request_waits_for_one_turn_of_each_other_address(flood: list[tuple[str, str]]) -> None:
    """However many requests, under however many keys, other addresses have sent before."""

    async def scenario() -> None:
        budget = Budget(1, 1)
        first = budget.take(C)
        order: list[str] = []

        async def ask(client: Client) -> None:
            async with budget.hold(client):
                order.append(client.address)

        tasks = [asyncio.create_task(ask(Client(*one))) for one in flood]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(ask(Client("late"))))
        await asyncio.sleep(0)
        first.give_back()
        await asyncio.gather(*tasks)
        assert order.index("late") <= len({address for address, _ in flood})

    asyncio.run(scenario())


def test_keys_of_an_address_take_turns() -> None:
    """One key with many requests delays another key of its address by one turn."""

    async def scenario() -> list[str]:
        budget = Budget(1, 1)
        first = budget.take(C)
        order: list[str] = []

        async def ask(key: str) -> None:
            async with budget.hold(Client("a", key)):
                order.append(key)

        tasks = [asyncio.create_task(ask(key)) for key in ["x"] * 5 + ["y"]]
        await asyncio.sleep(0)
        first.give_back()
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(scenario()) == ["x", "y", "x", "x", "x", "x"]


def test_one_address_leaves_a_thread_to_others_even_if_it_disconnects() -> None:
    """A function that runs keeps its thread counted after its task was cancelled; another address is served at once."""

    async def scenario() -> None:
        pool, proceed, started = FairPool(3, "test"), threading.Event(), threading.Semaphore(0)

        def work() -> None:
            started.release()
            proceed.wait(10)

        for _ in range(6):
            task = asyncio.create_task(pool.run(A, work))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(2):
            assert await pool.run(B, lambda: "answer") == "answer"
        running = 0
        while started.acquire(blocking=False):
            running += 1
        assert running == 2
        proceed.set()
        async with asyncio.timeout(2):
            assert await pool.run(A, lambda: "again") == "again"
        pool.close()

    asyncio.run(scenario())


def test_an_error_is_raised_and_its_thread_is_free_again() -> None:
    async def scenario() -> None:
        pool = FairPool(2, "test")
        for _ in range(4):
            with pytest.raises(ZeroDivisionError):
                await pool.run(A, lambda: 1 / 0)
        pool.close()
        with pytest.raises(RuntimeError):
            await pool.run(A, lambda: 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("peer", "headers", "address"),
    [
        (("192.0.2.7", 1), [], "192.0.2.7"),
        (("::ffff:192.0.2.7", 1), [], "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1), [], "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1), [], "fe80::/64"),
        (("testclient", 1), [], "testclient"),
        (None, [], ""),
    ],
)
def test_a_client_is_a_key_of_an_address(peer: Any, headers: Any, address: str) -> None:
    """IPv6 addresses count by their network; a key is held as a digest of one length."""
    assert Client.of({"client": peer, "headers": headers}) == Client(address)
    keyed = Client.of({"client": peer, "headers": [(b"authorization", b"Bearer " + b"x" * 9999)]})
    assert keyed.address == address
    assert len(keyed.key) == 32
