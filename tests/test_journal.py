"""The journal: one rollout at a time, recorded before it acts, readable after any crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest

from deploy.errors import GlmError, Locked
from deploy.host import Host
from deploy.journal import journal as journals
from deploy.journal import locks
from deploy.journal.journal import Journal, begin
from deploy.journal.receipt import Receipt
from deploy.journal.record import Record, RecordedLimits
from tests.box import CODE

_HOLDER = """
import sys, time
from pathlib import Path
from deploy.host import Host
from deploy.journal.journal import Journal, begin

state = Path(sys.argv[1])
journal = Journal(Host(True, state, state, state, state, state))
if sys.argv[2] == "looking":
    print("held", flush=True)
    while True:
        journal.is_locked
with getattr(journal, sys.argv[2])():
    if sys.argv[2] == "lock" and len(sys.argv) < 4:
        begin(journal, "deploy", "1.2.0", "green").enter("start")
    print("held", flush=True)
    time.sleep(float((sys.argv[3:] or ["60"])[0]))
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def journal(state: Path) -> Journal:
    return Journal(Host(True, state, state, state, state, state))


@contextmanager
def holder(state: Path, what: str, *seconds: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock `lock` or `switching`, or is `looking` at the first, until it is killed.

    With `seconds`, it has no open record and exits by itself.
    """
    argv = [sys.executable, "-c", _HOLDER, str(state), what, *seconds]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=CODE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_one_rollout_at_a_time(journal: Journal, state: Path) -> None:
    """While another process holds the lock, Locked is raised at once, with exit code 7 and the phase of the holder."""
    with holder(state, "lock"):
        with pytest.raises(Locked, match=r"deploy of 1\.2\.0, in start") as refusal, journal.lock():
            pass
        assert refusal.value.exit_code == 7


def test_a_rollout_waits_for_one_that_has_just_ended(journal: Journal, state: Path) -> None:
    """A holder of the lock without an open record is about to exit; the next rollout is not refused."""
    with holder(state, "lock", "0.3"), journal.lock():
        pass


def test_a_holder_without_a_record_is_not_waited_for_without_end(
    journal: Journal, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while Locked is raised; another process may stop a slot for minutes and write no record."""
    monkeypatch.setattr("deploy.journal.journal._UNNAMED_WAIT", 0.2)
    with holder(state, "lock", "60"), pytest.raises(Locked, match="starting"), journal.lock():
        pass


def test_lock_dies_with_its_holder(journal: Journal, state: Path) -> None:
    """Kill -9 of the holder frees the lock; its rollout is found unfinished."""
    with holder(state, "lock") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with journal.lock():
        (left,) = journal.unfinished()
    assert (left.kind, left.version, left.slot, left.phase) == ("deploy", "1.2.0", "green", "start")


def test_lock_is_free_again_after_an_error(journal: Journal) -> None:
    """A rollout that fails releases the lock; one process cannot hold it twice either."""
    with pytest.raises(RuntimeError), journal.lock():
        raise RuntimeError
    with journal.lock():
        begin(journal, "deploy", "1.2.0", "green").enter("start")
        with pytest.raises(Locked), journal.lock():
            pass
    with journal.lock():
        pass


def test_switching_does_not_wait_for_a_rollout(journal: Journal, state: Path) -> None:
    """The rename of `live` has a lock of its own: a rollback does not wait for a deploy in its bake."""
    with holder(state, "lock"), journal.switching():
        pass


def test_switching_excludes_another_process(journal: Journal, state: Path) -> None:
    """Only one process at a time may rename `live`; the next one waits until it releases the lock or dies."""
    entered = threading.Event()

    def enter() -> None:
        with journal.switching():
            entered.set()

    with holder(state, "switching") as process:
        assert locks.is_held(state / "switch")
        waiting = threading.Thread(target=enter)
        waiting.start()
        waiting.join(0.05)
        assert not entered.is_set()
        process.send_signal(signal.SIGKILL)
        waiting.join(10)
        assert entered.is_set()


def test_phase_is_on_disk_before_it_acts(journal: Journal, state: Path) -> None:
    """When a phase begins it is on disk: a crash during it can be distinguished from a crash before it."""
    with journal.lock():
        entry = begin(journal, "deploy", "1.0.0", "blue")
        assert journal.records() == []
        for number, phase in enumerate(("preflight", "prepare", "start"), start=1):
            entry.enter(phase)  # type: ignore[arg-type]
            (found,) = journal.records()
            assert (found.phase, len(found.steps), found.outcome) == (phase, number, None)
    assert [path.suffix for path in (state / "history").iterdir()] == [".json"]


def test_record_is_synced_before_it_is_published(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is synced before the rename: a power cut leaves the old record or the new one."""
    order: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor: int) -> None:
        order.append("fsync")
        fsync(descriptor)

    def record_rename(path: str, to: str, **directories: int) -> None:
        order.append("rename")
        rename(path, to, **directories)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    with journal.lock():
        begin(journal, "deploy", "1.0.0", "blue").enter("preflight")
    assert order[:2] == ["fsync", "rename"]


def test_end_is_read_as_it_was_written(journal: Journal) -> None:
    """Outcome, reason, receipt and time are read back, and the rollout is no longer unfinished."""
    with journal.lock():
        entry = begin(journal, "deploy", "1.0.0", "blue")
        entry.enter("preflight")
        assert [one.id for one in journal.unfinished()] == [entry.record.id]
        entry.end("refused", reason="the disk is full", receipt=Receipt(accepted=3, completed=3))
    assert journal.unfinished() == []
    found = journal.last()
    assert found == entry.record
    assert found.receipt == Receipt(accepted=3, completed=3)
    assert found.seconds is not None
    assert found.ended_at is not None
    assert found.ended_at >= found.started_at


def test_damaged_records_are_skipped(journal: Journal, state: Path) -> None:
    """A truncated record, or something else in the directory, hides no other record."""
    with journal.lock():
        for version in ("1", "2"):
            entry = begin(journal, "deploy", version, "blue")
            entry.enter("preflight")
            entry.end("done")
    history = state / "history"
    good = next(history.glob("*.json")).read_bytes()
    (history / "20000101-000000-01.json").write_bytes(good[: len(good) // 2])
    (history / "20000101-000000-02.json").write_text("")
    (history / "20000101-000000-03.json").write_bytes(b"\xff\xfe\x00")
    (history / "20000101-000000-04.json").write_text("[]")
    (history / "20000101-000000-05.json").mkdir()
    (history / "20000101-000000-06.json").write_text(json.dumps({"id": "x", "kind": "coup"}))
    (history / "20000101-000000-07.new").write_text("{}")
    (history / "notes.txt").write_text("hello")
    assert [one.version for one in journal.records()] == ["1", "2"]
    assert journal.unfinished() == []


def test_records_are_in_order_of_time(journal: Journal) -> None:
    """Rollouts of one second keep their order, and each has its own id."""
    with journal.lock():
        for number in range(12):
            begin(journal, "deploy" if number % 2 else "rollback", str(number), "blue").enter("preflight")
    records = journal.records()
    assert [one.version for one in records] == [str(number) for number in range(12)]
    assert len({one.id for one in records}) == 12
    last, newest_deploy, none = journal.last(), journal.last_of("deploy", "9"), journal.last_of("deploy", "10")
    assert last is not None
    assert last.version == "11"
    assert newest_deploy is not None
    assert none is None


def test_empty_host_has_no_history(journal: Journal, state: Path) -> None:
    """Reading a host without a journal finds no rollouts and creates no directory."""
    assert journal.records() == journal.unfinished() == []
    assert journal.last() is None
    assert not state.exists()


def test_an_unwritable_state_directory_is_an_error(journal: Journal, state: Path) -> None:
    """A lock or a record that cannot be written raises GlmError with a hint."""
    state.write_text("a file")
    with pytest.raises(GlmError, match="cannot write to") as error, journal.lock():
        pass
    assert error.value.hint
    with pytest.raises(GlmError, match="cannot write the journal"):
        journal.write(Record(id="1", kind="deploy", version="1", slot="blue", started_at="now"))


def test_a_reader_that_tests_the_lock_does_not_hinder_a_rollout(journal: Journal, state: Path) -> None:
    """However often other processes look whether the lock is held, a rollout that begins is never refused."""
    with journal.lock():
        assert journal.is_locked
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(holder(state, "looking"))
        for _ in range(5000):
            with journal.lock():
                pass


def test_rollouts_of_dead_controllers_are_told_from_running_ones(journal: Journal, state: Path) -> None:
    """A record is interrupted if it has not ended and no process holds the lock; looking writes nothing."""
    assert journal.interrupted() == []
    assert not state.exists()
    with holder(state, "lock") as process:
        assert journal.interrupted() == []
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with holder(state, "switching"):  # a warm rollback holds this lock alone
        assert journal.interrupted() == []
    before = {path: path.stat().st_mtime_ns for path in state.rglob("*")}
    assert [(one.version, one.phase) for one in journal.interrupted()] == [("1.2.0", "start")]
    assert {path: path.stat().st_mtime_ns for path in state.rglob("*")} == before


def test_limits_of_a_later_version_are_read(journal: Journal, state: Path) -> None:
    """A record whose limits have a field that this version does not know is not skipped."""
    entry = begin(journal, "deploy", "1.0.0", "blue")
    entry.record.limits = RecordedLimits(max_p95=2.0)
    with journal.lock():
        entry.enter("start")
    (path,) = (state / "history").glob("*.json")
    document = json.loads(path.read_text())
    document["limits"]["max_regret"] = 1
    path.write_text(json.dumps(document))
    (found,) = journal.records()
    assert found.limits == RecordedLimits(max_p95=2.0)


@pytest.mark.parametrize("years", [(2030, 2020, 2020, 2031), (2031, 2020, 2090, 2025, 2091)])
def test_ids_ascend_whatever_the_clock_does(years: tuple[int, ...], tmp_path: Path) -> None:
    """The clock is set forward and back between rollouts: history has them in the order in which they happened."""
    journal = Journal(Host(True, tmp_path, tmp_path, tmp_path, tmp_path, tmp_path))
    versions = [f"1.{number}.0" for number in range(len(years))]
    for year, version in zip(years, versions, strict=True):
        with mock.patch.object(journals, "datetime", wraps=datetime) as clock, journal.lock():
            clock.now.return_value = datetime(year, 1, 1, tzinfo=UTC)
            entry = begin(journal, "deploy", version, "blue")
            entry.enter("preflight")
            entry.end("done")
    assert [one.version for one in journal.records()] == versions
