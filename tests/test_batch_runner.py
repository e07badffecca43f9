"""The batch runner: results, retries, expiry and release of claims."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.batches.claims import MAX_TRIES
from service.batches.database import Database
from service.batches.owner import current_owner
from service.batches.store import Batches
from service.engine import Priority
from tests.batch_fixtures import (
    BatchStore,
    FakeChat,
    Gate,
    api_error,
    claim,
    jsonl,
    request_line,
    request_lines,
    result_ids,
    sleeping_process,
    validated_batch,
    wait_until,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BatchStore]:
    store = BatchStore(tmp_path)
    yield store
    store.database.close()


def test_claims_of_a_killed_owner(store: BatchStore) -> None:
    """After kill -9 of the owner another runner completes its requests within 1.5 s."""
    batch_id = validated_batch(store, request_lines(4))

    async def work() -> float:
        with sleeping_process() as (dead, kill):
            assert len(claim(store, dead)) == 4
            runner = store.runner(FakeChat(), current_owner(), serving=Gate())
            runner.start()
            await asyncio.sleep(0.7)
            assert store.batches.get(batch_id)["request_counts"]["completed"] == 0
            kill()
            began = time.monotonic()
            batch = await store.wait_for_end(batch_id)
            took = time.monotonic() - began
            await runner.stop()
            assert result_ids(batch, store) == [f"task-{number}" for number in range(4)]
            return took

    assert asyncio.run(work()) < 1.5


def test_line_version_is_the_responses(store: BatchStore) -> None:
    """The version of a line is that of the response, since weights may be swapped in between."""

    class OtherVersion(FakeChat):
        async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
            return await super().complete(document, priority=priority) | {"system_fingerprint": "0.9.0"}

    batch_id = validated_batch(store, request_lines(2))

    async def work() -> None:
        runner = store.runner(OtherVersion(), current_owner(), version="1.0.0", serving=lambda: True)
        runner.start()
        batch = await store.wait_for_end(batch_id)
        await runner.stop()
        assert [entry["response"]["version"] for entry in store.content(batch["output_file_id"])] == ["0.9.0"] * 2

    asyncio.run(work())


def test_closed_gate_releases_claims(store: BatchStore) -> None:
    """When the gate closes, running requests are cancelled and the live worker processes them."""
    batch_id = validated_batch(store, request_lines(6))

    async def work() -> float:
        old, new = FakeChat(pause=0.2), FakeChat()
        gate = Gate()
        with sleeping_process() as (other, _):
            leaving = store.runner(old, current_owner(), version="1.0.0", rows=2, serving=gate)
            live = store.runner(new, other, version="1.1.0", rows=2, serving=lambda: not gate())
            leaving.start()
            live.start()
            await wait_until(lambda: store.batches.get(batch_id)["request_counts"]["completed"] >= 2)
            old.pause = 60
            await wait_until(lambda: old.running == 2 and old.calls.total() >= 4)
            gate.is_open = False
            closed = time.monotonic()
            batch = await store.wait_for_end(batch_id)
            took = time.monotonic() - closed
            await leaving.stop()
            await live.stop()
        lines = store.content(batch["output_file_id"])
        assert sorted(entry["custom_id"] for entry in lines) == [f"task-{number}" for number in range(6)]
        assert {entry["response"]["version"] for entry in lines} == {"1.0.0", "1.1.0"}
        assert old.cancelled
        assert old.running == 0
        return took

    assert asyncio.run(work()) < 2


def test_one_result_per_request(store: BatchStore) -> None:
    """Gates of three workers change at random, requests fail, one worker is killed: each request has one result."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    count = 120
    batch_id = store.create(request_lines(count))
    with sleeping_process() as (a, kill), sleeping_process() as (b, _), sleeping_process() as (c, _):

        async def work() -> dict[str, Any]:
            chats = [FakeChat(pause=0.02) for _ in range(3)]
            for number in range(0, count, 10):
                for chat in chats:
                    chat.fail[f"task-{number}"] = [api_error(429), api_error(500), RuntimeError("odd")][
                        : chance.randrange(3)
                    ]
            gates = [Gate(False) for _ in range(3)]
            runners = [
                store.runner(chat, owner, rows=5, serving=gate)
                for chat, owner, gate in zip(chats, (a, b, c), gates, strict=True)
            ]
            for runner in runners:
                runner.start()
            ended = asyncio.create_task(store.wait_for_end(batch_id, 60))
            flips = 0
            while not ended.done():
                live = chance.randrange(3)
                for number, gate in enumerate(gates):
                    is_dead = number == 0 and flips > 3  # it may go on once, but not die again and again
                    gate.is_open = not is_dead and (number == live or chance.random() < 0.2)
                await asyncio.sleep(chance.random() * 0.6)
                flips += 1
                if flips == 3:  # its runner goes on with the name of a dead process
                    kill()
            for runner in runners:
                await runner.stop()
            return await ended

        batch = asyncio.run(work())
    assert batch["status"] == "completed", seed
    assert Counter(result_ids(batch, store)) == Counter({f"task-{number}": 1 for number in range(count)}), seed
    assert batch["request_counts"]["completed"] == count, seed
    assert store.orphans() == set()


def test_requests_that_end_during_a_poll(store: BatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their results are stored: none is processed again, however long a poll takes."""

    def slow(_: Batches) -> bool:
        time.sleep(0.03)
        return True

    monkeypatch.setattr(Batches, "has_room", slow)
    batch_id = store.create(request_lines(60))

    class Uneven(FakeChat):
        async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
            self.pause = random.uniform(0, 0.05)
            return await super().complete(document, priority=priority)

    chat = Uneven()

    async def work() -> dict[str, Any]:
        runner = store.runner(chat, current_owner(), rows=8, serving=lambda: True)
        runner.start()
        batch = await store.wait_for_end(batch_id, 30)
        await runner.stop()
        return batch

    assert asyncio.run(work())["request_counts"]["completed"] == 60
    assert set(chat.calls.values()) == {1}


def test_retries(store: BatchStore) -> None:
    """429 is retried without limit, 500 and exceptions five times, 400 never; results are in the right file."""
    content = jsonl(*(request_line(name) for name in ("busy", "flaky", "broken", "odd", "wrong")))
    batch_id = validated_batch(store, content)
    chat = FakeChat()
    chat.fail = {
        "busy": [api_error(429) for _ in range(2)],
        "flaky": [api_error(500), RuntimeError("odd")],
        "broken": [api_error(500, "again") for _ in range(99)],
        "odd": [RuntimeError("secret") for _ in range(99)],
        "wrong": [api_error(400, "bad")],
    }

    async def work() -> dict[str, Any]:
        runner = store.runner(chat, current_owner(), serving=Gate())
        runner.start()
        batch = await store.wait_for_end(batch_id)
        await runner.stop()
        return batch

    batch = asyncio.run(work())
    assert chat.calls == {"busy": 3, "flaky": 3, "broken": MAX_TRIES, "odd": MAX_TRIES, "wrong": 1}
    assert batch["request_counts"] == {"total": 5, "completed": 2, "failed": 3}
    assert [entry["custom_id"] for entry in store.content(batch["output_file_id"])] == ["busy", "flaky"]
    responses = {entry["custom_id"]: entry["response"] for entry in store.content(batch["error_file_id"])}
    assert {name: entry["status_code"] for name, entry in responses.items()} == {
        "broken": 500,
        "odd": 500,
        "wrong": 400,
    }
    assert "secret" not in str(responses)


def test_rows_limit_concurrency(store: BatchStore) -> None:
    """A worker processes at most GLM_BATCH_ROWS requests concurrently."""
    batch_id = validated_batch(store, request_lines(40))
    chat = FakeChat(pause=0.02)

    async def work() -> None:
        runner = store.runner(chat, current_owner(), rows=3, serving=Gate())
        runner.start()
        await store.wait_for_end(batch_id)
        await runner.stop()

    asyncio.run(work())
    assert chat.max_running == 3


@settings(deadline=None, derandomize=True, max_examples=5)
@given(gate=st.lists(st.booleans(), max_size=12), wakes=st.lists(st.booleans(), max_size=6))
@example(gate=[True, False], wakes=[True])  # the gate closes before the first step of the requests' tasks
def test_capacity_survives_cancellation(gate: list[bool], wakes: list[bool]) -> None:
    """Whenever the gate closes, even before a claimed request was begun, the runner can use all its rows afterwards."""
    looks, polls = list(gate), list(wakes)
    chat = FakeChat(pause=0.01)

    async def work(store: BatchStore) -> None:
        first = validated_batch(store, request_lines(6))
        runner = store.runner(chat, current_owner(), rows=3, serving=lambda: looks.pop(0) if looks else True)
        loop, poll = asyncio.get_running_loop(), runner._claims.poll

        def poll_while_a_request_ends(*arguments: Any, **options: Any) -> Any:
            assignment = poll(*arguments, **options)
            if polls and polls.pop(0):
                loop.call_soon_threadsafe(runner._wake.set)
            return assignment

        runner._claims.poll = poll_while_a_request_ends  # type: ignore[method-assign]
        runner.start()
        await store.wait_for_end(first)
        chat.max_running = 0
        batch = await store.wait_for_end(store.create(request_lines(9)))
        assert sorted(result_ids(batch, store)) == [f"task-{number}" for number in range(9)]
        await runner.stop()

    with tempfile.TemporaryDirectory() as directory:
        store = BatchStore(Path(directory))
        asyncio.run(work(store))
        store.database.close()
    assert chat.max_running == 3


def test_expired_batch(store: BatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its completion window a batch is expired; results are in the output, other requests in the errors."""
    batch_id = validated_batch(store, request_lines(6))
    chat = FakeChat()
    for number in range(3, 6):
        chat.fail[f"task-{number}"] = [api_error(429) for _ in range(999)]

    async def work() -> dict[str, Any]:
        runner = store.runner(chat, current_owner(), serving=Gate())
        runner.start()
        await wait_until(lambda: store.batches.get(batch_id)["request_counts"]["completed"] == 3)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 24 * 3600 + 1)
        batch = await store.wait_for_end(batch_id)
        await runner.stop()
        return batch

    batch = asyncio.run(work())
    assert batch["status"] == "expired"
    assert batch["expired_at"]
    assert len(store.content(batch["output_file_id"])) == 3
    assert {entry["error"]["code"] for entry in store.content(batch["error_file_id"])} == {"batch_expired"}
    assert len(result_ids(batch, store)) == len(set(result_ids(batch, store))) == 6


def test_idle_runner(store: BatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an unfinished batch the database is not queried; a new batch is noticed within 0.5 s."""
    transactions: list[str] = []
    reading, writing = Database.reading, Database.writing

    def counted(kind: str, method: Any) -> Any:
        def call(self: Database) -> Any:
            if self is not store.database:
                transactions.append(kind)
            return method(self)

        return call

    monkeypatch.setattr(Database, "reading", counted("reading", reading))
    monkeypatch.setattr(Database, "writing", counted("writing", writing))

    async def work() -> None:
        runner = store.runner(FakeChat(), current_owner(), serving=Gate())
        runner.start()
        await asyncio.sleep(1)
        assert transactions == []  # there is no database before the first upload
        await store.wait_for_end(store.create(request_lines(2)))
        await asyncio.sleep(1)
        transactions.clear()
        used = time.process_time()
        await asyncio.sleep(2)
        assert transactions == []
        assert time.process_time() - used < 0.1
        began = time.monotonic()
        await store.wait_for_end(store.create(request_lines(1)))
        assert time.monotonic() - began < 1.5
        await runner.stop()

    asyncio.run(work())


def test_zero_rows(store: BatchStore) -> None:
    """With GLM_BATCH_ROWS=0 the worker processes no batches, and stops at once."""
    batch_id = store.create(request_lines(1))

    async def work() -> None:
        runner = store.runner(FakeChat(), current_owner(), rows=0, serving=Gate())
        runner.start()
        await asyncio.sleep(0.5)
        await runner.stop()

    asyncio.run(work())
    assert store.batches.get(batch_id)["status"] == "validating"
