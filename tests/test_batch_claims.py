"""Claims: each request of a batch is processed by one worker at a time and has one result."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.batches.claims import MAX_DEATHS, MAX_TRIES, Outcome
from service.batches.owner import current_owner, owner_alive
from tests.batch_fixtures import (
    BatchStore,
    claim,
    request_lines,
    sleeping_process,
    validated_batch,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BatchStore]:
    store = BatchStore(tmp_path)
    yield store
    store.database.close()


def test_concurrent_claims(store: BatchStore) -> None:
    """Eight threads that claim concurrently get every request once."""
    validated_batch(store, request_lines(200))
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        owners = [stack.enter_context(sleeping_process())[0] for _ in range(8)]

        def take(owner: str) -> list[Any]:
            own = BatchStore(store.settings.state)
            got: list[Any] = []
            while more := own.claims(owner).poll((), {entry.key for entry in got}, capacity=7, transition="x").claims:
                got += more
            own.database.close()
            return got

        got = [entry.key.line for part in pool.map(take, owners) for entry in part]
    assert sorted(got) == list(range(1, 201))


def test_only_the_holder_settles_a_claim(store: BatchStore) -> None:
    """A late outcome of an owner whose claim was reclaimed has no effect: each request has one result."""
    batch_id = validated_batch(store, request_lines(2))
    with sleeping_process() as (slow, kill):
        late = claim(store, slow)
        kill()
        me = current_owner()
        for number in range(2):  # one at a time, since the worker died
            (again,) = claim(store, me)
            assert again.key == late[number].key
            if number:  # the first is settled, the second claimed by another
                for entry in late:
                    store.claims(slow).release([Outcome(entry.key, "completed", '{"by":"late"}')])
            assert store.batches.get(batch_id)["request_counts"]["completed"] == number
            mine = Outcome(again.key, "completed", '{"by":"me"}')
            store.claims(me).poll([mine, mine], (), capacity=0, transition=None)
    assert store.batches.get(batch_id)["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assignment = store.claims(me).poll((), (), capacity=0, transition=None)
    assert assignment.transition is None or assignment.transition.kind == "finalise"
    store.batches.finalise(batch_id, me)
    batch = store.batches.get(batch_id)
    assert store.content(batch["output_file_id"]) == [{"by": "me"}] * 2


def test_claim_order(store: BatchStore) -> None:
    """Requests are claimed in the order of batches and lines; one that failed before comes last in its batch."""
    first, second = validated_batch(store, request_lines(3)), validated_batch(store, request_lines(2))
    assert first != second
    me = current_owner()
    entry = claim(store, me, 1)[0]
    store.claims(me).poll([Outcome(entry.key, "pending", counts_as_try=True)], (), capacity=0, transition=None)
    claims = store.claims(me)
    rounds: list[Any] = []
    done: list[Outcome] = []
    while got := claims.poll(done, (), capacity=8, transition="x").claims:
        running = {entry.key for entry in got}
        rounds.append([tuple(entry.key) for entry in got])
        done = [Outcome(key, "completed", "{}") for key in running]
    assert rounds == [[(1, 2), (1, 3), (1, 1), (2, 1), (2, 2)]]


def test_unlisted_claims_are_released(store: BatchStore) -> None:
    """A claim that its owner does not list as running, as after a failed poll, is released."""
    validated_batch(store, request_lines(3))
    me = current_owner()
    unlisted = claim(store, me)
    assert [entry.key for entry in claim(store, me)] == [entry.key for entry in unlisted]


def test_release_is_no_failed_try(store: BatchStore) -> None:
    """Releases by workers whose gate closes, or whose engine is busy, are not counted as tries."""
    validated_batch(store, request_lines(1))
    me = current_owner()
    for again in range(MAX_TRIES * 2):
        (entry,) = claim(store, me)
        assert (entry.tries, entry.deaths) == (0, 0)
        outcome = Outcome(entry.key, "pending")
        if again % 2:
            store.claims(me).poll([outcome], (), capacity=0, transition=None)
        else:
            store.claims(me).release([outcome] if again % 4 else ())


def test_request_that_kills_its_workers(store: BatchStore) -> None:
    """A request fails after three workers died while processing it, and the batch ends."""
    batch_id = validated_batch(store, request_lines(1))
    for _ in range(MAX_DEATHS):
        with sleeping_process() as (owner, kill):
            assert len(claim(store, owner)) == 1
            kill()
    me = current_owner()
    assignment = store.claims(me).poll((), (), capacity=1, transition=None)
    assert not assignment.claims
    assert assignment.transition
    store.batches.finalise(batch_id, me)
    (error,) = store.content(store.batches.get(batch_id)["error_file_id"])
    assert error["response"]["body"]["error"]["code"] == "worker_died"


@given(lines=st.lists(st.booleans(), min_size=1, max_size=12), capacity=st.integers(1, 8))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_only_requests_that_kill_workers_fail(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bool], capacity: int
) -> None:
    """Whatever is processed beside a request that kills its worker is answered; the killers alone fail."""
    store = BatchStore(tmp_path_factory.mktemp("state"))
    batch_id = validated_batch(store, request_lines(len(lines)))
    try:
        for _ in range(len(lines) * (MAX_DEATHS + 1)):
            with sleeping_process() as (owner, kill):
                entries = claim(store, owner, capacity)
                if not entries:
                    break
                if any(lines[entry.key.line - 1] for entry in entries):
                    kill()
                else:
                    done = [Outcome(entry.key, "completed", "{}") for entry in entries]
                    store.claims(owner).poll(done, (), capacity=0, transition="x")
        counts = store.batches.get(batch_id)["request_counts"]
        assert (counts["completed"], counts["failed"]) == (lines.count(False), lines.count(True))
    finally:
        store.database.close()


def test_owner_identity() -> None:
    """A reused pid, and a process of another boot, are not the owner."""
    boot, pid, ticks = current_owner().split("/")
    assert owner_alive(current_owner())
    assert not owner_alive(f"{boot}/{pid}/{int(ticks) + 1}")
    assert not owner_alive(f"another-boot/{pid}/{ticks}")
    with sleeping_process() as (other, kill):
        assert owner_alive(other)
        kill()
        assert not owner_alive(other)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([("a", 20), ("b", 20)], {"a": 4, "b": 4}),
        ([("a", 20), ("a", 20), ("b", 2)], {"a": 6, "b": 2}),
        ([("a", 20), ("b", 20), ("", 20), ("b", 20)], {"a": 3, "b": 3, "": 2}),
        ([("a", 20)], {"a": 8}),
    ],
)
def test_keys_in_turn(store: BatchStore, sizes: list[tuple[str, int]], expected: dict[str, int]) -> None:
    """Whatever was created first, each API key has its share of what is claimed, counted over all workers."""
    keys: dict[int, str] = {}
    for key, size in sizes:
        validated_batch(store, request_lines(size), key)
        keys[len(keys) + 1] = key
    with sleeping_process() as (first, _), sleeping_process() as (second, _):
        claims = [*claim(store, first, 3), *claim(store, second, 5)]
    assert Counter(keys[one.key.batch] for one in claims) == expected
    assert len({one.key for one in claims}) == 8
    ordered = [one.key for one in claims if keys[one.key.batch] == "a"]
    assert ordered == sorted(ordered)
