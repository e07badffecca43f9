"""A client that asks for more answers than the engine has rows: n=8 in eight requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.contract.engine_settings import EngineSettings
from service.engine.dummy import DummyEngine
from service.engine.pace import Pace
from service.engine.protocol import Limits
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence
from service.fairness.client import Client
from service.identity import Identity
from service.model.release import Release
from service.settings import Settings as ServiceSettings

CLIENTS = [Client(address, key) for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3") for key in ("", "a", "b")]

arrivals = st.tuples(st.sampled_from(CLIENTS), st.integers(1, 8), st.sampled_from(["interactive", "batch"]))
ends = st.integers(0, 63)  # which of the rows ends


def scheduler_of(rows: int, chunk: int, client_rows: float = 1.0) -> Scheduler:
    cache = SimpleNamespace(
        budget=SimpleNamespace(rows=rows),
        fits=lambda *_, **__: True,
        reserve=lambda *_: True,
        release=lambda _: None,
        move=lambda *_: None,
    )
    return Scheduler(cast("Any", cache), Pace(chunk), client_rows)


def sequence_of(client: Client, **more: Any) -> Sequence:
    return Sequence(
        cast("Any", SimpleNamespace(length=3)), cast("Any", None), cast("Any", None), 9, client=client, **more
    )


def step(scheduler: Scheduler) -> list[Sequence]:
    """Compute one step; returns the sequences that got a row in it, in order."""
    before = list(scheduler.rows)
    planned = scheduler.schedule()
    admitted = [sequence for sequence in scheduler.rows if sequence not in before]
    if planned:
        scheduler.advance(planned)
        for sequence in planned.sequences:
            if not sequence.uncomputed:
                sequence.tokens.append(0)
    return admitted


def held(sequences: list[Sequence], client: Client) -> tuple[int, int]:
    """The rows of the client's address, and of the client."""
    clients = Counter(sequence.client for sequence in sequences)
    return sum(count for one, count in clients.items() if one.address == client.address), clients[client]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(moves=st.lists(st.one_of(arrivals, ends), max_size=40), rows=st.integers(1, 12), chunk=st.sampled_from([2, 512]))
def test_the_next_row_goes_to_the_client_with_the_fewest(moves: list[Any], rows: int, chunk: int) -> None:
    """Whatever arrives and ends: no row is given to a client while one waits whose address, or whose key of the same
    address, holds fewer; a client's requests keep their order, and no row is free while a request waits.
    """  # fmt: skip
    scheduler = scheduler_of(rows, chunk)
    for move in moves:
        if isinstance(move, tuple):
            client, choices, priority = move
            for _ in range(choices):
                scheduler.add(sequence_of(client, priority=priority))
        elif scheduler.rows:
            scheduler.rows[move % len(scheduler.rows)].ended = True
            scheduler.reap()
        queued = [*scheduler.interactive, *scheduler.batch]
        running = list(scheduler.rows)
        admitted = step(scheduler)
        running = [one for one in running if one in scheduler.rows]  # without those that were preempted
        for sequence in admitted:
            waiting = [one for one in queued if one.priority == sequence.priority and one is not sequence]
            peers = [one for one in running if one.priority == sequence.priority]
            for other in waiting:
                mine, others = (held(peers, one.client) for one in (sequence, other))
                same_address = other.client.address == sequence.client.address
                assert mine <= others if same_address else mine[0] <= others[0]
                assert other.client != sequence.client or other.number > sequence.number
            queued.remove(sequence)
            running.append(sequence)
        if chunk > 3 * rows:
            assert len(scheduler.rows) == rows or not scheduler.busy or not (scheduler.interactive or scheduler.batch)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(greed=st.lists(st.integers(1, 90), min_size=2, max_size=5), rows=st.integers(5, 64), data=st.data())
def test_shares_become_equal_once_what_ran_before_has_ended(greed: list[int], rows: int, data: st.DataObject) -> None:
    """The first client takes all rows; when those requests have ended, every client has its max-min share."""
    scheduler = scheduler_of(rows, 1 << 10)
    clients = [Client(f"10.0.0.{number}") for number in range(len(greed))]
    first = [sequence_of(clients[0]) for _ in range(rows)]
    for sequence in first:
        scheduler.add(sequence)
    step(scheduler)
    assert len(scheduler.rows) == rows  # alone it may take all
    for client, count in zip(clients, greed, strict=True):
        for _ in range(count):
            scheduler.add(sequence_of(client))
    for sequence in data.draw(st.permutations(first)):
        sequence.ended = True
        scheduler.reap()
        step(scheduler)
    shares = Counter(sequence.client for sequence in scheduler.rows)
    wanting = [shares[client] for client, count in zip(clients, greed, strict=True) if shares[client] < count]
    assert max(shares.values()) <= min(wanting, default=rows) + 1
    assert sum(shares.values()) == min(rows, sum(greed))


def test_a_part_of_the_rows_can_be_kept_free() -> None:
    """With client_rows one address leaves rows for others, also when none waits."""
    scheduler = scheduler_of(8, 512, client_rows=0.75)
    for key in ("", "a"):
        for _ in range(9):
            scheduler.add(sequence_of(Client("10.0.0.1", key)))
    step(scheduler)
    assert len(scheduler.rows) == 6
    scheduler.add(other := sequence_of(Client("10.0.0.2")))
    assert step(scheduler) == [other]


# over HTTP


@asynccontextmanager
async def server(tmp_path: Path, rows: int) -> AsyncIterator[Any]:
    """A function that returns an HTTP client with a given address."""
    release = Release(tmp_path, "1.0.0", EngineSettings(rows=rows), ())
    engine = DummyEngine(1, release, Limits(max_wait=30))
    app = create_app(
        engine,
        Identity("1.0.0", "blue", 1),
        ServiceSettings(slot="blue", state=tmp_path, max_queue=1024),
        serving=lambda: True,
    )

    def client(address: str, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers, timeout=60)

    yield client


async def ask(client: httpx.AsyncClient, tokens: int, n: int = 1) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": tokens, "n": n}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("kind", ["address", "key"])
def test_others_are_answered_beside_a_greedy_client(tmp_path: Path, kind: str) -> None:
    """While 64 requests with n=8 of one client are in flight, for 64 rows, the requests of others get the next rows.

    In order of arrival, 56 of the greedy requests would end before another client's request is answered.
    """

    async def scenario() -> list[int]:
        async with server(tmp_path, 64) as client:
            greedy = client("10.0.0.1", authorization="Bearer greedy")
            ended = 0
            is_over = False

            async def take_all() -> None:
                nonlocal ended
                while not is_over:
                    await ask(greedy, 40, n=8)
                    ended += 1

            attack = [asyncio.create_task(take_all()) for _ in range(64)]
            others = [
                client(f"10.0.1.{number}")
                if kind == "address"
                else client("10.0.0.1", authorization=f"Bearer {number}")
                for number in range(8)
            ]
            while not ended:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            passed = []
            for other in others:
                before = ended
                await ask(other, 1)
                passed.append(ended - before)
            is_over = True
            await asyncio.gather(*attack)
            return passed

    passed = asyncio.run(scenario())
    assert max(passed) <= 16, passed
