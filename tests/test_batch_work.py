"""Who works on batches: whatever happens to a worker, every request is answered once."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.batches.claims import TRIES, Outcome
from service.batches.database import BUSY, Database, Unavailable
from service.batches.owner import myself, owner_lives
from service.batches.store import Order
from service.engine import Priority
from tests.office import (
    ENDPOINT,
    IDENTITY,
    Desk,
    FakeChat,
    jsonl,
    line,
    process,
    refusal,
    requests,
    served,
    settings,
    until,
    upload,
)
from tests.test_app import FakeEngine


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.database.close()


class Switch:
    """A gate that a test opens and shuts."""

    def __init__(self, is_open: bool = True) -> None:
        self.is_open = is_open

    def __call__(self) -> bool:
        return self.is_open


def begun(desk: Desk, content: bytes) -> str:
    """A batch that was validated."""
    batch_id = desk.order(content)
    me = myself()
    assert desk.claims(me).take_turn((), (), room=0, chore=None).chore
    desk.batches.validate(batch_id, me, lambda: True)
    assert desk.batches.get(batch_id)["status"] == "in_progress"
    return batch_id


def claim(desk: Desk, owner: str, room: int = 100) -> list[Any]:
    return desk.claims(owner).take_turn((), (), room=room, chore=None).claims


def names(batch: dict[str, Any], desk: Desk) -> list[str]:
    return [one["custom_id"] for kind in ("output", "error") for one in desk.content(batch[f"{kind}_file_id"])]


def test_two_never_claim_the_same(desk: Desk) -> None:
    """Eight threads that claim at the same time get every request once."""
    begun(desk, requests(200))
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        owners = [stack.enter_context(process())[0] for _ in range(8)]

        def take(owner: str) -> list[Any]:
            own = Desk(desk.settings.state)
            got: list[Any] = []
            while more := own.claims(owner).take_turn((), {one.key for one in got}, room=7, chore="x").claims:
                got += more
            own.database.close()
            return got

        got = [one.key.line for part in pool.map(take, owners) for one in part]
    assert sorted(got) == list(range(1, 201))


def test_a_result_counts_only_for_who_holds_the_claim(desk: Desk) -> None:
    """A worker that was taken for dead and comes back with its answer changes nothing: the answer is there once."""
    batch_id = begun(desk, requests(2))
    with process() as (slow, kill):
        late = claim(desk, slow)
        kill()
        me = myself()
        again = claim(desk, me)
        assert [one.key for one in again] == [one.key for one in late]
        mine = [Outcome(one.key, "completed", '{"by":"me"}') for one in again]
        desk.claims(me).take_turn(mine[:1], {again[1].key}, room=0, chore=None)
        for number, one in enumerate(late):  # settled already, and claimed by another
            desk.claims(slow).put_back([Outcome(one.key, "completed", f'{{"by":"late {number}"}}')])
        assert desk.batches.get(batch_id)["request_counts"]["completed"] == 1
        desk.claims(me).take_turn([*mine, *mine], (), room=0, chore=None)
    assert desk.batches.get(batch_id)["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    turn = desk.claims(me).take_turn((), (), room=0, chore=None)
    assert turn.chore is None or turn.chore.what == "finalise"
    desk.batches.finalise(batch_id, me)
    batch = desk.batches.get(batch_id)
    assert desk.content(batch["output_file_id"]) == [{"by": "me"}] * 2


def test_the_oldest_batch_goes_first_and_failures_go_last(desk: Desk) -> None:
    """Requests are claimed in the order of batches and lines; one that failed before waits for the others."""
    first, second = begun(desk, requests(3)), begun(desk, requests(2))
    assert first != second
    me = myself()
    one = claim(desk, me, 1)[0]
    desk.claims(me).take_turn([Outcome(one.key, "pending", counts=True)], (), room=0, chore=None)
    got = claim(desk, me)
    assert [(key.batch, key.line) for key in (one.key for one in got)] == [(1, 2), (1, 3), (1, 1), (2, 1), (2, 2)]


def test_what_an_owner_forgot_is_free_again(desk: Desk) -> None:
    """A claim that its living owner does not know of (its turn failed half-way) is not held for ever."""
    begun(desk, requests(3))
    me = myself()
    forgotten = claim(desk, me)
    assert [one.key for one in claim(desk, me)] == [one.key for one in forgotten]


def test_being_put_back_is_no_failure(desk: Desk) -> None:
    """A request may be put back by workers that leave, or that have no room, as often as it likes."""
    begun(desk, requests(1))
    me = myself()
    for again in range(TRIES * 2):
        (one,) = claim(desk, me)
        assert one.tries == 0
        outcome = Outcome(one.key, "pending")
        if again % 2:
            desk.claims(me).take_turn([outcome], (), room=0, chore=None)
        else:
            desk.claims(me).put_back([outcome] if again % 4 else ())


def test_an_owner_is_known_by_its_birth_and_boot() -> None:
    """A pid that was given to another process, and anything of another boot, is no living owner."""
    boot, pid, born = myself().split("/")
    assert owner_lives(myself())
    assert not owner_lives(f"{boot}/{pid}/{int(born) + 1}")
    assert not owner_lives(f"another-boot/{pid}/{born}")
    with process() as (other, kill):
        assert owner_lives(other)
        kill()
        assert not owner_lives(other)


def run(work: Callable[[], Any]) -> Any:
    return asyncio.run(work())


def test_a_dead_workers_requests_are_taken_up_within_a_second(desk: Desk) -> None:
    """Kill -9 of the process that holds claims: another has them done about a second later, none is lost."""
    batch_id = begun(desk, requests(4))

    async def work() -> float:
        with process() as (dead, kill):
            assert len(claim(desk, dead)) == 4
            labourer = desk.labourer(FakeChat(), myself(), serving=Switch())
            labourer.start()
            await asyncio.sleep(0.7)
            assert desk.batches.get(batch_id)["request_counts"]["completed"] == 0
            kill()
            began = time.monotonic()
            batch = await desk.ended(batch_id)
            took = time.monotonic() - began
            await labourer.stop()
            assert names(batch, desk) == [f"task-{number}" for number in range(4)]
            return took

    assert run(work) < 1.5


def test_a_line_names_the_version_whose_weights_answered(desk: Desk) -> None:
    """Other weights may come while an answer is on its way: the line says what the answer itself says."""

    class Named(FakeChat):
        async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
            return await super().complete(document, priority=priority) | {"system_fingerprint": "0.9.0"}

    batch_id = begun(desk, requests(2))

    async def work() -> None:
        labourer = desk.labourer(Named(), myself(), version="1.0.0", serving=lambda: True)
        labourer.start()
        batch = await desk.ended(batch_id)
        await labourer.stop()
        assert [one["response"]["version"] for one in desk.content(batch["output_file_id"])] == ["0.9.0"] * 2

    run(work)


def test_a_closed_gate_gives_its_requests_back_at_once(desk: Desk) -> None:
    """When the gate closes, what is in progress is broken off and done by the live one; that costs it no try."""
    batch_id = begun(desk, requests(6))

    async def work() -> float:
        old, new = FakeChat(pause=0.2), FakeChat()
        gate = Switch()
        with process() as (other, _):
            leaving = desk.labourer(old, myself(), version="1.0.0", rows=2, serving=gate)
            live = desk.labourer(new, other, version="1.1.0", rows=2, serving=lambda: not gate())
            leaving.start()
            live.start()
            await until(lambda: desk.batches.get(batch_id)["request_counts"]["completed"] >= 2)
            old.pause = 60
            await until(lambda: old.at_once == 2 and old.asked.total() >= 4)
            gate.is_open = False
            closed = time.monotonic()
            batch = await desk.ended(batch_id)
            took = time.monotonic() - closed
            await leaving.stop()
            await live.stop()
        lines = desk.content(batch["output_file_id"])
        assert sorted(one["custom_id"] for one in lines) == [f"task-{number}" for number in range(6)]
        assert {one["response"]["version"] for one in lines} == {"1.0.0", "1.1.0"}
        assert old.cancelled
        assert old.at_once == 0
        return took

    assert run(work) < 2


def test_every_request_is_answered_once_whatever_the_gates_do(desk: Desk) -> None:
    """Three workers whose gates open and shut at random, one of them killed, with failures among the requests."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    many = 120
    batch_id = desk.order(requests(many))
    with process() as (a, kill), process() as (b, _), process() as (c, _):

        async def work() -> dict[str, Any]:
            chats = [FakeChat(pause=0.02) for _ in range(3)]
            for number in range(0, many, 10):
                for chat in chats:
                    chat.fail[f"task-{number}"] = [refusal(429), refusal(500), RuntimeError("odd")][
                        : chance.randrange(3)
                    ]
            gates = [Switch(False) for _ in range(3)]
            labourers = [
                desk.labourer(chat, owner, rows=5, serving=gate)
                for chat, owner, gate in zip(chats, (a, b, c), gates, strict=True)
            ]
            for labourer in labourers:
                labourer.start()
            ended = asyncio.create_task(desk.ended(batch_id, 60))
            flips = 0
            while not ended.done():
                live = chance.randrange(3)
                for number, gate in enumerate(gates):
                    gate.is_open = number == live or chance.random() < 0.2
                await asyncio.sleep(chance.random() * 0.6)
                flips += 1
                if flips == 3:  # the process is gone, though this one still acts in its name
                    kill()
            for labourer in labourers:
                await labourer.stop()
            return await ended

        batch = run(work)
    assert batch["status"] == "completed", seed
    assert Counter(names(batch, desk)) == Counter({f"task-{number}": 1 for number in range(many)}), seed
    assert batch["request_counts"]["completed"] == many, seed
    assert desk.leftovers() == set()


def test_failures_of_ours_are_tried_again_and_those_of_the_request_are_not(desk: Desk) -> None:
    """429 waits for ever, 500 and exceptions are tried five times, 400 is final; each ends in the right file."""
    content = jsonl(*(line(name) for name in ("busy", "flaky", "broken", "odd", "wrong")))
    batch_id = begun(desk, content)
    chat = FakeChat()
    chat.fail = {
        "busy": [refusal(429) for _ in range(2)],
        "flaky": [refusal(500), RuntimeError("odd")],
        "broken": [refusal(500, "again") for _ in range(99)],
        "odd": [RuntimeError("secret") for _ in range(99)],
        "wrong": [refusal(400, "bad")],
    }

    async def work() -> dict[str, Any]:
        labourer = desk.labourer(chat, myself(), serving=Switch())
        labourer.start()
        batch = await desk.ended(batch_id)
        await labourer.stop()
        return batch

    batch = run(work)
    assert chat.asked == {"busy": 3, "flaky": 3, "broken": TRIES, "odd": TRIES, "wrong": 1}
    assert batch["request_counts"] == {"total": 5, "completed": 2, "failed": 3}
    assert [one["custom_id"] for one in desk.content(batch["output_file_id"])] == ["busy", "flaky"]
    told = {one["custom_id"]: one["response"] for one in desk.content(batch["error_file_id"])}
    assert {name: one["status_code"] for name, one in told.items()} == {"broken": 500, "odd": 500, "wrong": 400}
    assert "secret" not in str(told)


def test_a_request_that_kills_its_workers_is_given_up(desk: Desk) -> None:
    """After five workers died under it a request is an error line, and the batch ends."""
    batch_id = begun(desk, requests(1))
    for _ in range(TRIES):
        with process() as (owner, kill):
            assert len(claim(desk, owner)) == 1
            kill()
    me = myself()
    turn = desk.claims(me).take_turn((), (), room=1, chore=None)
    assert not turn.claims
    assert turn.chore
    desk.batches.finalise(batch_id, me)
    (told,) = desk.content(desk.batches.get(batch_id)["error_file_id"])
    assert told["response"]["body"]["error"]["code"] == "worker_died"


def test_no_more_at_a_time_than_rows(desk: Desk) -> None:
    """A worker never runs more requests of batches than its setting says."""
    batch_id = begun(desk, requests(40))
    chat = FakeChat(pause=0.02)

    async def work() -> None:
        labourer = desk.labourer(chat, myself(), rows=3, serving=Switch())
        labourer.start()
        await desk.ended(batch_id)
        await labourer.stop()

    run(work)
    assert chat.most_at_once == 3


def test_a_batch_expires_with_what_was_done(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its window a batch ends as expired; what was done is in the output, the rest is named in the errors."""
    batch_id = begun(desk, requests(6))
    chat = FakeChat()
    for number in range(3, 6):
        chat.fail[f"task-{number}"] = [refusal(429) for _ in range(999)]

    async def work() -> dict[str, Any]:
        labourer = desk.labourer(chat, myself(), serving=Switch())
        labourer.start()
        await until(lambda: desk.batches.get(batch_id)["request_counts"]["completed"] == 3)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 24 * 3600 + 1)
        batch = await desk.ended(batch_id)
        await labourer.stop()
        return batch

    batch = run(work)
    assert batch["status"] == "expired"
    assert batch["expired_at"]
    assert len(desk.content(batch["output_file_id"])) == 3
    assert {one["error"]["code"] for one in desk.content(batch["error_file_id"])} == {"batch_expired"}
    assert len(names(batch, desk)) == len(set(names(batch, desk))) == 6


def test_nothing_to_do_costs_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is no unfinished batch the database is not asked; a new batch is seen within half a second."""
    asked: list[str] = []
    reading, writing = Database.reading, Database.writing

    def counted(kind: str, method: Any) -> Any:
        def call(self: Database) -> Any:
            if self is not desk.database:
                asked.append(kind)
            return method(self)

        return call

    monkeypatch.setattr(Database, "reading", counted("reading", reading))
    monkeypatch.setattr(Database, "writing", counted("writing", writing))

    async def work() -> None:
        labourer = desk.labourer(FakeChat(), myself(), serving=Switch())
        labourer.start()
        await asyncio.sleep(1)
        assert asked == []  # nobody ever sent a file: there is no database
        await desk.ended(desk.order(requests(2)))
        await asyncio.sleep(1)
        asked.clear()
        used = time.process_time()
        await asyncio.sleep(2)
        assert asked == []
        assert time.process_time() - used < 0.1
        began = time.monotonic()
        await desk.ended(desk.order(requests(1)))
        assert time.monotonic() - began < 1.5
        await labourer.stop()

    run(work)


def test_zero_rows_is_no_work(desk: Desk) -> None:
    """GLM_BATCH_ROWS=0: this worker takes nothing, and stops at once."""
    batch_id = desk.order(requests(1))

    async def work() -> None:
        labourer = desk.labourer(FakeChat(), myself(), rows=0, serving=Switch())
        labourer.start()
        await asyncio.sleep(0.5)
        await labourer.stop()

    run(work)
    assert desk.batches.get(batch_id)["status"] == "validating"


def test_what_is_acknowledged_is_on_the_disk(desk: Desk) -> None:
    """Every connection is in write-ahead mode with full synchronisation, and waits for others' transactions."""
    begun(desk, requests(1))
    with desk.database.writing() as connection:
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in
                 ("journal_mode", "synchronous", "busy_timeout", "foreign_keys", "user_version")}  # fmt: skip
    assert found == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": BUSY * 1000, "foreign_keys": 1,
                     "user_version": 1}  # fmt: skip


def _open(directory: Path, start: Any) -> None:
    desk = Desk(directory)
    start.wait()
    desk.order(requests(1))
    desk.database.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_processes_that_open_it_for_the_first_time_together(tmp_path: Path) -> None:
    """Six processes that meet an empty directory at the same moment all get their batch in."""
    context = multiprocessing.get_context("fork")  # importing the service anew takes seconds
    start = context.Barrier(6)
    children = [context.Process(target=_open, args=(tmp_path, start)) for _ in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 6
    assert len(Desk(tmp_path).batches.list(after=None, limit=10).data) == 6


def test_a_later_schema_is_used_as_it_is(tmp_path: Path) -> None:
    """After a rollback the older version works with what the newer one added."""
    desk = Desk(tmp_path)
    batch_id = desk.order(requests(1))
    desk.database.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "batches.db")) as database:
        database.execute("ALTER TABLE batches ADD COLUMN model TEXT DEFAULT 'glm'")
        database.execute("PRAGMA user_version=2")
    again = Desk(tmp_path)
    assert again.batches.get(batch_id)["status"] == "validating"
    assert again.order(requests(1))


def test_a_sweep_takes_what_dead_writers_left_and_no_more(desk: Desk) -> None:
    """Bytes whose writer died go; files, and drafts whose writer lives, stay."""
    desk.order(requests(1))
    (desk.settings.state / "files/file-dead").write_bytes(b"half")
    draft = desk.files.draft()
    assert len(desk.leftovers()) == 2
    desk.files.sweep()
    assert desk.leftovers() == {draft.id}
    draft.write(b"x")
    desk.files.add(draft, "a", "batch")
    draft.close()
    assert desk.leftovers() == set()


def test_finalising_that_is_overtaken_leaves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that finalise the same batch: one set of files is there, no bytes of the other."""
    batch_id = begun(desk, requests(2))
    me = myself()
    mine = [Outcome(one.key, "completed", "{}") for one in claim(desk, me)]
    assert desk.claims(me).take_turn(mine, (), room=0, chore=None).chore
    with process() as (other, _):
        desk.claims(me).put_back(())
        assert desk.claims(other).take_turn((), (), room=0, chore=None).chore
        desk.batches.finalise(batch_id, me)
        assert desk.batches.get(batch_id)["status"] == "finalizing"
        desk.batches.finalise(batch_id, other)
    batch = desk.batches.get(batch_id)
    assert batch["status"] == "completed"
    assert desk.leftovers() == set()
    assert len(desk.files.list(after=None, limit=9, newest_first=True, purpose="batch_output").data) == 1


# a state directory that cannot be used


@pytest.mark.parametrize("state", ["missing", "a file", "no database"])
def test_without_a_state_directory_the_chat_goes_on(tmp_path: Path, state: str) -> None:
    """Files and batches answer 503 with a reason, chat and readiness are untouched; once mended, all works."""
    directory = tmp_path / "state"
    if state == "a file":
        directory.write_text("")
    elif state == "no database":
        directory.mkdir()
        (directory / "batches.db").write_bytes(b"not a database, and long enough to be taken for one" * 100)
    app = create_app(FakeEngine(), IDENTITY, settings(directory), serving=lambda: True)
    with TestClient(app) as client:
        form: dict[str, Any] = {"files": {"file": ("a", requests(1))}, "data": {"purpose": "batch"}}
        for answer in (client.get("/v1/files"), client.get("/v1/batches"), client.post("/v1/files", **form)):
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["code"] == "storage_unavailable"
            assert str(directory) in answer.json()["error"]["message"]
            assert answer.headers["retry-after"]
        hello = {"messages": [{"role": "user", "content": "hello"}]}
        assert client.post("/v1/chat/completions", json=hello).status_code == 200
        assert client.get("/readyz").status_code == 200
        if state == "a file":
            directory.unlink()
        elif state == "no database":
            (directory / "batches.db").unlink()
        directory.mkdir(exist_ok=True)
        assert client.post("/v1/files", **form).status_code == 200
        assert client.get("/v1/batches").status_code == 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_said_and_nothing_stays_half_written(small_disk: Path) -> None:
    """What does not fit is a 507 that leaves nothing; what was there is whole, and room made again is used."""
    with served(small_disk) as client:
        kept = upload(client, b"x" * 100_000)
        with pytest.raises(openai.InternalServerError) as full:
            upload(client, b"x" * 2_000_000)
        assert full.value.status_code == 507
        assert full.value.code == "storage_full"
        assert [one.id for one in client.files.list()] == [kept]
        assert [path.name for path in (small_disk / "files").iterdir()] == [kept]
        filler = small_disk / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(b"x" * (1 << 20))
        answer = 200
        while answer == 200:  # the log's last pages may have had room
            body = {
                "input_file_id": kept,
                "endpoint": ENDPOINT,
                "completion_window": "24h",
                "metadata": {"a": "x" * 500},
            }
            answer = httpx.post(f"{client.base_url}batches", json=body, trust_env=False).status_code
        assert answer == 507
        known = len(list(client.batches.list()))
        filler.unlink()
        assert len(list(client.batches.list())) == known
        assert upload(client, b"y")


def test_results_wait_for_a_disk_that_is_full(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Answers that cannot be written down are kept until they can; no request is asked again for that."""
    desk = Desk(small_disk)
    batch_id = begun(desk, requests(3))
    with desk.files.draft() as draft:
        bad = desk.files.add(draft, "a", "batch").id
    chat = FakeChat(pause=0.3)
    filler = small_disk / "filler"

    async def work() -> dict[str, Any]:
        labourer = desk.labourer(chat, myself(), serving=Switch())
        labourer.start()
        await until(lambda: chat.at_once == 3)
        with contextlib.suppress(OSError):
            filler.write_bytes(b"x" * (1 << 20))
        # the log is written over from its start once it was copied: fill what room it has left
        with contextlib.suppress(Unavailable):
            while True:
                desk.batches.create(Order(bad, ENDPOINT, "24h", {"a": "x" * 500}))
        await asyncio.sleep(2.5)
        assert desk.batches.get(batch_id)["request_counts"]["completed"] == 0
        filler.unlink()
        batch = await desk.ended(batch_id)
        await labourer.stop()
        return batch

    batch = run(work)
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert chat.asked == {f"task-{number}": 1 for number in range(3)}
    assert len([record for record in caplog.records if "out of service" in record.message]) == 1
