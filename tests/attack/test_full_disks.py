"""Full file systems: the service goes on, and the operator can look, delete and go back."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batches.batch_params import BatchParams
from service.batches.database import Unavailable
from service.batches.room import free
from service.chat.errors import ApiError
from service.contract.samples import Sample, SampleRing, check
from service.contract.worker_state import WorkerState
from tests.attack.garbage import CONTENTS, KINDS
from tests.batch_fixtures import ENDPOINT, BatchStore, request_lines, served
from tests.box import Box

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


@contextmanager
def small_disk(place: Path, size: str = "1m") -> Iterator[Path]:
    """Mount a file system of that size."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Use all the room of a file system, to the last byte."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        for piece in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(piece)) == piece:
                    pass
    status = os.statvfs(disk)
    assert status.f_bavail == 0
    return filler


PROGRAM = """
import logging, os, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from service import metrics
fill = sys.argv[1] == "growing"
for number in range(1500):
    one = metrics.Metrics(f"1.0.{number}", "blue")
    one.set_in_flight(1); one.observe_first_token(0.1); one.count_tokens(3)
    metrics.count_request(f"1.0.{number}", "blue", "/x", "200", 0.1); metrics.flush()
    if fill and number == 3:
        fill = False
        with open(os.environ["PROMETHEUS_MULTIPROC_DIR"] + "/filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)) == 4096: pass
            except OSError: pass
print(len(metrics.render()) > 1000, flush=True)
"""


@needs_root
@pytest.mark.parametrize("when", ["at start", "growing"])
def test_metrics_on_a_full_disk(tmp_path: Path, when: str) -> None:
    """No SIGBUS: the process goes on without shared metrics and says so once, however many it has; scrapes work."""
    with small_disk(tmp_path / "run") as run:
        if when == "at start":
            fill(run)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, when],
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(run)}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, (done.returncode, done.stderr)
        assert done.stdout.count("this process is not measured") == 1
        assert done.stdout.endswith(f"{when == 'growing'}\n")
        assert not any(path.stat().st_size == 0 for path in run.glob("*.db"))


@pytest.mark.parametrize("what", [*KINDS, *CONTENTS])
def test_metrics_beside_garbage(tmp_path: Path, what: str) -> None:
    """Anything in the directory of the metrics hinders neither a process nor a scrape."""
    program = (
        f"import os, pathlib, shutil\nplace = {str(tmp_path)!r}\n"
        + """
from tests.attack.garbage import plant
from pathlib import Path
import sys
for kind in ("counter", "gauge_livesum", "histogram"):
    plant(Path(place) / f"{kind}_{os.getpid()}.db", sys.argv[1])
    plant(Path(place) / f"{kind}_1.db", sys.argv[1])
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 27, 1 << 27))  # whatever is tried, the disk of this machine stays free
from service import metrics
one = metrics.Metrics("1", "blue")
one.set_in_flight(1); one.observe_first_token(0.1); one.count_tokens(3); metrics.flush()
metrics.render()
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", program, what],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr)


@needs_root
def test_samples_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose ring cannot be allocated lives without it, and leaves no empty file that doctor would report."""
    with small_disk(tmp_path / "run") as run:
        filler = fill(run)
        state = WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0")
        ring = SampleRing(run / "1.samples", state)
        for number in range(10_000):
            ring.add(Sample(float(number), 0.1, None, 200))
        assert not (run / "1.samples").exists()
        assert len(caplog.records) == 1
        filler.unlink()
        SampleRing(run / "2.samples", state).add(Sample(1.0, 0.1, None, 200))
        check(run / "2.samples")


def put(store: BatchStore, size: int, key: str = "") -> str:
    """Upload a file as a client does, in pieces."""
    draft = store.files.draft(key)
    try:
        while draft.size < size:
            draft.write(bytes(min(1 << 14, size - draft.size)))
        return store.files.add(draft, "a", "batch").id
    finally:
        draft.close()


def stored(store: BatchStore) -> int:
    """The bytes on the disk, in whole blocks."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in (store.settings.state / "files").glob("*"))


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(["", "a", "b"]), st.integers(0, 30_000)),
        st.tuples(st.just("delete"), st.just(""), st.integers(0, 30)),
    ),
    max_size=25,
)


@given(actions=ACTIONS)
@settings(deadline=None, derandomize=True, max_examples=25)
def test_quotas(actions: list[tuple[str, str, int]]) -> None:
    """Whatever clients store and delete, what is stored stays below both quotas, and a deletion makes room again."""
    with tempfile.TemporaryDirectory() as directory:
        store = BatchStore(Path(directory), max_stored=60_000, max_stored_per_key=40_000)
        kept: dict[str, tuple[str, int]] = {}
        for what, key, number in actions:
            if what == "delete" and kept:
                file_id = sorted(kept)[number % len(kept)]
                store.files.delete(file_id, key=kept[file_id][0])
                del kept[file_id]
            elif what == "put":
                blocks = (number // 4096 + 1) * 4096
                used = sum(size for _, size in kept.values())
                of_key = sum(size for owner, size in kept.values() if owner == key)
                if used + blocks <= 60_000 and of_key + blocks <= 40_000:
                    kept[put(store, number, key)] = key, blocks
                else:
                    with pytest.raises(ApiError, match="delete some"):
                        put(store, number, key)
            assert stored(store) <= 60_000
            assert sum(size for owner, size in kept.values() if owner == "a") <= 40_000
        store.database.close()


def test_uploads_at_the_same_time_share_a_quota(tmp_path: Path) -> None:
    """Uploads that are not complete count: many that begin together cannot fill the disk."""
    store = BatchStore(tmp_path, max_stored=100_000, max_stored_per_key=100_000)
    drafts = [store.files.draft("a") for _ in range(10)]
    refused = 0
    for draft in drafts * 20:
        try:
            draft.write(bytes(1000))
        except ApiError:
            refused += 1
    assert refused
    assert stored(store) <= 150_000
    for draft in drafts:
        draft.close()
    assert put(store, 90_000, "a")


def test_quotas_over_http(tmp_path: Path) -> None:
    """A key that has used its share gets 413 and a reason; others can still upload."""
    with served(tmp_path, max_stored_per_key=20_000) as client:
        first = client.with_options(api_key="first")
        kept = first.files.create(file=("a", b"x" * 10_000), purpose="batch")
        with pytest.raises(openai.APIStatusError) as refused:
            first.files.create(file=("a", b"x" * 15_000), purpose="batch")
        assert (refused.value.status_code, refused.value.code) == (413, "quota_exceeded")
        assert client.with_options(api_key="second").files.create(file=("a", b"x" * 15_000), purpose="batch")
        first.files.delete(kept.id)
        assert first.files.create(file=("a", b"x" * 15_000), purpose="batch")


@needs_root
def test_room_is_kept_for_the_journal(tmp_path: Path) -> None:
    """Clients that upload and create batches until they are refused leave the reserve; what is there goes on."""
    with small_disk(tmp_path / "state", "4m") as state:
        store = BatchStore(state, state_reserve=1 << 20)
        names: list[str] = []
        with pytest.raises(Unavailable, match="kept back"):
            names.extend(put(store, 100_000) for _ in range(100))
        assert free(state) >= (1 << 20) - (1 << 17)
        file_id = names.pop()
        store.files.delete(names.pop())
        for _ in range(1000):  # requests that fit by themselves
            with suppress(Unavailable):
                store.batches.create(BatchParams(file_id, ENDPOINT, "24h", {"a": "x" * 512}))
        assert free(state) >= (1 << 20) - (1 << 17)
        assert not store.batches.has_room()
        for name in names:
            store.files.delete(name)
        assert store.batches.has_room()
        store.database.close()


@needs_root
@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_deletion_on_a_full_disk(tmp_path: Path, size: int, opened: bool) -> None:
    """Without one free byte files can be deleted and batches cancelled, by a process that has just started too."""
    with small_disk(tmp_path / "state", "2m") as state:
        store = BatchStore(state)
        names = [put(store, size) for _ in range(6)]
        batch = store.create(request_lines(1))
        if not opened:
            store.database.close()
            store = BatchStore(state)
        filler = fill(state)
        for name in names:
            store.files.delete(name)
            with filler.open("ab", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)) == 4096:
                    pass
        store.batches.cancel(batch)
        assert {path.name for path in (state / "files").iterdir()}.isdisjoint(names)
        store.database.close()


def test_an_older_database_gets_the_new_columns(tmp_path: Path) -> None:
    """The files of an earlier version belong to no key and count in all, and it can go on storing files."""
    store = BatchStore(tmp_path)
    kept = put(store, 10)
    store.database.close()
    with closing(sqlite3.connect(tmp_path / "batches.db")) as database:
        database.execute("DROP INDEX files_key_hash")
        database.execute("ALTER TABLE files DROP COLUMN key_hash")
        database.execute("PRAGMA user_version=1")
        database.commit()
    store = BatchStore(tmp_path, max_stored=4 * 4096)
    assert store.files.get(kept).bytes == 10
    assert put(store, 10, "")
    with closing(sqlite3.connect(tmp_path / "batches.db")) as database:
        columns = "id, bytes, created_at, filename, purpose"
        database.execute(f"INSERT INTO files ({columns}) VALUES ('file-1', 1, 1, 'a', 'batch')")
        database.commit()
    with pytest.raises(ApiError):
        put(store, 10, "")
    store.database.close()


@pytest.fixture
def small_state(box: Box) -> Iterator[Box]:
    """A host on which 1.0.0 is live, whose journal is on a small disk."""
    with tempfile.TemporaryDirectory() as aside:
        shutil.copytree(box.host.state, aside, dirs_exist_ok=True)
        with small_disk(box.host.state, "32m"):
            shutil.copytree(aside, box.host.state, dirs_exist_ok=True)
            yield box


@needs_root
def test_the_operator_on_a_full_disk(small_state: Box) -> None:
    """Without one free byte one can look at everything and go back, to a warm version and to one that must load."""
    box = small_state
    box.glmctl("deploy", "1.1.0", "--bake", "0s", "--keep-warm", "10m")
    filler = fill(box.host.state)
    assert box.json("status")["live"] == "green"
    records = len(box.json("history")["rollouts"])
    assert any("free" in one["what"] and not one["good"] for one in box.json("doctor", expect=1)["findings"])
    done = box.glmctl("rollback", "--json")
    assert "cannot write the journal" in done.stderr
    assert "the rollback goes on" in done.stderr
    assert json.loads(done.stdout)["outcome"] == "done"
    assert box.json("status")["live"] == "blue"
    assert box.get("/version").json()["version"] == "1.0.0"
    box.systemctl("stop", "glm@green.service")
    box.glmctl("rollback", "1.1.0")
    assert box.get("/version").json()["version"] == "1.1.0"
    box.glmctl("deploy", "1.0.0", expect=1)
    assert box.get("/version").json()["version"] == "1.1.0"
    assert len(box.json("history")["rollouts"]) == records
    filler.unlink()
    box.glmctl("deploy", "1.0.0", "--bake", "0s")
    assert len(box.json("history")["rollouts"]) == records + 1
    assert box.json("status")["rollout"]["outcome"] == "done"
