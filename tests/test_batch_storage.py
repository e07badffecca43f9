"""The database and files of batches: durability, several processes, unusable directories and full disks."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.batches.batch_params import BatchParams
from service.batches.claims import Outcome
from service.batches.database import BUSY_TIMEOUT, Unavailable
from service.batches.owner import current_owner
from tests.batch_fixtures import (
    ENDPOINT,
    IDENTITY,
    BatchStore,
    FakeChat,
    Gate,
    claim,
    request_lines,
    served,
    settings,
    sleeping_process,
    upload,
    validated_batch,
    wait_until,
)
from tests.test_app import FakeEngine


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BatchStore]:
    store = BatchStore(tmp_path)
    yield store
    store.database.close()


def test_transactions_are_durable(store: BatchStore) -> None:
    """Every connection has a write-ahead log, full synchronisation, and waits for other transactions."""
    validated_batch(store, request_lines(1))
    with store.database.writing() as connection:
        pragmas = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in
                 ("journal_mode", "synchronous", "busy_timeout", "foreign_keys", "user_version")}  # fmt: skip
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": BUSY_TIMEOUT * 1000, "foreign_keys": 1,
                     "user_version": 2}  # fmt: skip


def _create(directory: Path, start: Any) -> None:
    store = BatchStore(directory)
    start.wait()
    store.create(request_lines(1))
    store.database.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_concurrent_creation(tmp_path: Path) -> None:
    """Six processes that open an empty directory concurrently can all create a batch."""
    context = multiprocessing.get_context("fork")  # spawn would import the service again, which takes seconds
    start = context.Barrier(6)
    children = [context.Process(target=_create, args=(tmp_path, start)) for _ in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 6
    assert len(BatchStore(tmp_path).batches.list(after=None, limit=10).data) == 6


def test_newer_schema(tmp_path: Path) -> None:
    """After a rollback the older version works with the schema of the newer one."""
    store = BatchStore(tmp_path)
    batch_id = store.create(request_lines(1))
    store.database.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "batches.db")) as database:
        database.execute("ALTER TABLE batches ADD COLUMN model TEXT DEFAULT 'glm'")
        database.execute("PRAGMA user_version=3")
    again = BatchStore(tmp_path)
    assert again.batches.get(batch_id)["status"] == "validating"
    assert again.create(request_lines(1))


def test_sweep(store: BatchStore) -> None:
    """A sweep deletes the content of dead writers, but neither files nor drafts of running writers."""
    store.create(request_lines(1))
    (store.settings.state / "files/file-dead").write_bytes(b"half")
    draft = store.files.draft()
    assert len(store.orphans()) == 2
    store.files.sweep()
    assert store.orphans() == {draft.id}
    draft.write(b"x")
    store.files.add(draft, "a", "batch")
    draft.close()
    assert store.orphans() == set()


def test_concurrent_finalisation(store: BatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that two owners finalise has one set of files, and no content of the other."""
    batch_id = validated_batch(store, request_lines(2))
    me = current_owner()
    mine = [Outcome(entry.key, "completed", "{}") for entry in claim(store, me)]
    assert store.claims(me).poll(mine, (), capacity=0, transition=None).transition
    with sleeping_process() as (other, _):
        store.claims(me).release(())
        assert store.claims(other).poll((), (), capacity=0, transition=None).transition
        store.batches.finalise(batch_id, me)
        assert store.batches.get(batch_id)["status"] == "finalizing"
        store.batches.finalise(batch_id, other)
    batch = store.batches.get(batch_id)
    assert batch["status"] == "completed"
    assert store.orphans() == set()
    assert len(store.files.list(after=None, limit=9, newest_first=True, purpose="batch_output").data) == 1


@pytest.mark.parametrize("state", ["missing", "a file", "no database"])
def test_unusable_state_directory(tmp_path: Path, state: str) -> None:
    """Files and batches answer 503 with a reason, chat and readiness work; once repaired, everything works."""
    directory = tmp_path / "state"
    if state == "a file":
        directory.write_text("")
    elif state == "no database":
        directory.mkdir()
        (directory / "batches.db").write_bytes(b"not a database, and as large as one" * 100)
    app = create_app(FakeEngine(), IDENTITY, settings(directory), serving=lambda: True)
    with TestClient(app) as client:
        form: dict[str, Any] = {"files": {"file": ("a", request_lines(1))}, "data": {"purpose": "batch"}}
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
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk(small_disk: Path) -> None:
    """A request that does not fit gets 507 and leaves nothing; existing files stay, and freed space is used."""
    with served(small_disk) as client:
        kept = upload(client, b"x" * 100_000)
        with pytest.raises(openai.InternalServerError) as full:
            upload(client, b"x" * 2_000_000)
        assert full.value.status_code == 507
        assert full.value.code == "storage_full"
        assert [entry.id for entry in client.files.list()] == [kept]
        assert [path.name for path in (small_disk / "files").iterdir()] == [kept]
        filler = small_disk / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(b"x" * (1 << 20))
        answer = 200
        while answer == 200:  # the log may have space left in its last pages
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


def test_full_disk_delays_results(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Results that cannot be stored are kept in memory until they can; no request is processed twice."""
    store = BatchStore(small_disk)
    batch_id = validated_batch(store, request_lines(3))
    with store.files.draft() as draft:
        bad = store.files.add(draft, "a", "batch").id
    chat = FakeChat(pause=0.3)
    filler = small_disk / "filler"

    async def work() -> dict[str, Any]:
        runner = store.runner(chat, current_owner(), serving=Gate())
        runner.start()
        await wait_until(lambda: chat.running == 3)
        with contextlib.suppress(OSError):
            filler.write_bytes(b"x" * (1 << 20))
        # fill the rest of the log, which is reused from its start after a checkpoint
        with contextlib.suppress(Unavailable):
            while True:
                store.batches.create(BatchParams(bad, ENDPOINT, "24h", {"a": "x" * 500}))
        await asyncio.sleep(2.5)
        assert store.batches.get(batch_id)["request_counts"]["completed"] == 0
        filler.unlink()
        batch = await store.wait_for_end(batch_id)
        await runner.stop()
        return batch

    batch = asyncio.run(work())
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert chat.calls == {f"task-{number}": 1 for number in range(3)}
    assert len([record for record in caplog.records if "files and batches are unavailable" in record.message]) == 1
