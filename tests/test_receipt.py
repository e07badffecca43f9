"""The receipt: every request is counted in one column, whichever process died."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.host import Host
from deploy.journal import receipt as module
from deploy.journal.journal import Journal, begin
from deploy.journal.receipt import Count, Line, Receipt, Snapshot, baseline, compute, dump, load, settled, snapshot
from deploy.reports.report import receipt_sentence

COLUMNS = ("accepted", "completed", "failed", "client_aborted", "drained", "cut", "handed_out", "adopted")


def count(
    slot: str = "blue",
    generation: int = 1,
    *,
    in_flight: int = 0,
    died: bool = False,
    killed: bool = False,
    **numbers: int,
) -> Count:
    """Return the counts of one worker; columns that are not given are 0."""
    return Count(
        slot=slot,
        generation=generation,
        version={"blue": "1.0.0", "green": "1.1.0"}[slot],
        numbers=dict.fromkeys(COLUMNS, 0) | numbers,
        in_flight=in_flight,
        died=died,
        killed=killed,
    )


def snapshot_of(*counts: Count) -> Snapshot:
    """Return a snapshot in which the n-th worker has the pid n."""
    return {(one.slot, one.generation, number, 0): one for number, one in enumerate(counts, start=1)}


NOTHING: Snapshot = {}
CASES: dict[str, tuple[Snapshot, Snapshot, dict[str, int]]] = {
    "nothing happened": (NOTHING, NOTHING, {}),
    "a worker that was started meanwhile": (
        NOTHING,
        snapshot_of(count(accepted=5, completed=3, failed=1, client_aborted=1)),
        {"accepted": 5, "completed": 3, "failed": 1, "client_aborted": 1, "lost": 1},
    ),
    "only requests of the rollout count": (
        snapshot_of(count(accepted=100, completed=90, failed=10)),
        snapshot_of(count(accepted=107, completed=96, failed=11)),
        {"accepted": 7, "completed": 6, "failed": 1, "lost": 1},
    ),
    "in flight at the start and completed": (
        snapshot_of(count(accepted=10, completed=8, in_flight=2)),
        snapshot_of(count(accepted=11, completed=11)),
        {"accepted": 3, "completed": 3},
    ),
    "in flight at the start and at the end": (
        snapshot_of(count(accepted=10, completed=8, in_flight=2)),
        snapshot_of(count(accepted=12, completed=10, in_flight=2)),
        {"accepted": 4, "completed": 2, "in_flight": 2},
    ),
    "killed with requests in flight": (
        snapshot_of(count(accepted=10, completed=10)),
        snapshot_of(count(accepted=14, completed=11, in_flight=3, died=True)),
        {"accepted": 4, "completed": 1, "failed": 3, "lost": 3},
    ),
    "killed with requests in flight since the start": (
        snapshot_of(count(accepted=10, completed=8, in_flight=2)),
        snapshot_of(count(accepted=10, completed=8, in_flight=2, died=True)),
        {"accepted": 2, "failed": 2, "lost": 2},
    ),
    "dead before the rollout": (
        snapshot_of(count(accepted=10, completed=7, in_flight=3, died=True)),
        snapshot_of(count(accepted=10, completed=7, in_flight=3, died=True)),
        {},
    ),
    "dead before the rollout, and replaced": (
        snapshot_of(count(accepted=10, completed=7, in_flight=3, died=True)),
        snapshot_of(count(accepted=10, completed=7, in_flight=3, died=True), count(accepted=2, completed=2)),
        {"accepted": 2, "completed": 2},
    ),
    "finished after the gate was closed": (
        snapshot_of(count(accepted=10, completed=8, in_flight=2, drained=4)),
        snapshot_of(count(accepted=10, completed=10, drained=6)),
        {"accepted": 2, "completed": 2, "drained": 2},
    ),
    "cut by the deadline": (
        snapshot_of(count(accepted=4, completed=2, in_flight=2)),
        snapshot_of(count(accepted=4, completed=2, failed=2, cut=2)),
        {"accepted": 2, "failed": 2, "cut": 2, "lost": 2},
    ),
    "connections handed from slot to slot": (
        snapshot_of(count(accepted=4, completed=4), count("green")),
        snapshot_of(count(accepted=5, completed=5, handed_out=3), count("green", accepted=3, completed=3, adopted=3)),
        {"accepted": 4, "completed": 4, "handed_out": 3, "adopted": 3},
    ),
    "gone from the second snapshot": (snapshot_of(count(accepted=4, completed=4)), NOTHING, {}),
}


@pytest.mark.parametrize(("before", "after", "expected"), CASES.values(), ids=CASES.keys())
def test_sums(before: Snapshot, after: Snapshot, expected: dict[str, int]) -> None:
    """Accepted, with those in flight at the start, is completed + failed + aborted + in flight, in every line."""
    receipt = compute(before, after)
    columns = (*COLUMNS, "in_flight", "lost")
    assert {name: getattr(receipt, name) for name in columns} == dict.fromkeys(columns, 0) | expected
    assert receipt.adds_up
    assert all(line.adds_up for line in receipt.lines)
    for name in (*COLUMNS, "in_flight"):
        assert sum(getattr(line, name) for line in receipt.lines) == getattr(receipt, name)


@given(st.lists(st.tuples(st.sampled_from(["blue", "green"]), st.integers(1, 3), st.integers(0, 9)), min_size=1))
def test_every_connection_that_was_handed_over_was_received(handovers: list[tuple[str, int, int]]) -> None:
    """Over all generations, however the counts are spread: one that nobody received is reported."""
    senders = [count(slot, generation, handed_out=number) for slot, generation, number in handovers]
    receivers = [count(slot, generation, adopted=number) for slot, generation, number in reversed(handovers)]
    receipt = compute(NOTHING, snapshot_of(*senders, *receivers))
    assert (receipt.unadopted, receipt.adds_up) == (0, True)
    for lost in (1, 5):
        receipt = compute(NOTHING, snapshot_of(*senders, *receivers, count("blue", 2, handed_out=lost)))
        assert (receipt.unadopted, receipt.adds_up, receipt.lost) == (lost, False, 0)
        assert all(line.adds_up for line in receipt.lines)
        assert Receipt.model_validate_json(receipt.model_dump_json()) == receipt


def test_connections_on_their_way_at_the_start_are_none_that_were_lost() -> None:
    """They were handed over before the rollout and received during it."""
    before = snapshot_of(count(handed_out=5), count("green", adopted=3))
    receipt = compute(before, snapshot_of(count(handed_out=5), count("green", adopted=5)))
    assert (receipt.handed_out, receipt.adopted, receipt.unadopted, receipt.adds_up) == (0, 2, 0, True)


def test_a_killed_worker_makes_the_comparison_impossible() -> None:
    """It may have received connections after it wrote its counts; one that was killed before the rollout did not."""
    sent, killed = count(handed_out=3), count("green", adopted=1, killed=True)
    receipt = compute(NOTHING, snapshot_of(sent, killed))
    assert (receipt.killed, receipt.unadopted, receipt.adds_up) == (1, 0, True)
    receipt = compute(snapshot_of(count(), killed), snapshot_of(sent, killed))
    assert (receipt.killed, receipt.unadopted, receipt.adds_up) == (0, 3, False)


def test_a_receipt_waits_for_connections_on_their_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn up once they were received, and not later than after the grace."""
    host = Host(True, tmp_path, tmp_path, tmp_path, tmp_path, tmp_path)
    looks = [snapshot_of(count(handed_out=3), count("green", adopted=number)) for number in (1, 2, 3)]
    monkeypatch.setattr(module, "snapshot", lambda _host: looks.pop(0) if len(looks) > 1 else looks[0])
    assert settled(host, NOTHING).unadopted == 0
    monkeypatch.setattr(module, "_GRACE", 0.1)
    looks = [snapshot_of(count(handed_out=3), count("green", adopted=2))]
    assert settled(host, NOTHING).unadopted == 1


def test_a_receipt_begins_when_no_connection_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is counted as received, and a moment later as handed over, is not missing at the end."""
    host = Host(True, tmp_path, tmp_path, tmp_path, tmp_path, tmp_path)
    seen = [(0, 0), (0, 1), (1, 1), (1, 1)]
    looks = [snapshot_of(count(handed_out=sent), count("green", adopted=received)) for sent, received in seen]
    monkeypatch.setattr(module, "snapshot", lambda _host: looks.pop(0) if len(looks) > 1 else looks[0])
    assert compute(baseline(host), looks[-1]).adds_up
    monkeypatch.setattr(module, "_GRACE", 0.1)
    endless = (snapshot_of(count(handed_out=number)) for number in range(10_000))
    monkeypatch.setattr(module, "snapshot", lambda _host: next(endless))
    assert baseline(host)


@pytest.mark.parametrize(("lost", "sentence"), [(1, "1 client connection was"), (2, "2 client connections were")])
def test_a_lost_connection_is_told(lost: int, sentence: str) -> None:
    """The receipt does not say that nothing was lost."""
    receipt = compute(NOTHING, snapshot_of(count(accepted=9, completed=9, handed_out=lost)))
    assert receipt_sentence(receipt).startswith(f"{sentence} handed over and not received")


def test_each_generation_has_its_line() -> None:
    """There is one line for each generation, in order; the workers of a generation are added up."""
    after = snapshot_of(
        count("green", 1, accepted=1, completed=1),
        count("blue", 2, accepted=2, completed=2, adopted=1),
        count("blue", 1, accepted=4, completed=3, in_flight=1),
        count("blue", 1, accepted=8, completed=8, handed_out=1),
        count("green", 2),
    )
    receipt = compute(NOTHING, after, probes=3)
    assert receipt.lines == [
        Line(slot="blue", generation=1, version="1.0.0", accepted=12, completed=11, in_flight=1, handed_out=1),
        Line(slot="blue", generation=2, version="1.0.0", accepted=2, completed=2, adopted=1),
        Line(slot="green", generation=1, version="1.1.0", accepted=1, completed=1),
    ]
    assert (receipt.accepted, receipt.completed, receipt.in_flight, receipt.probes) == (15, 14, 1, 3)


def test_a_line_that_does_not_add_up_is_reported() -> None:
    """One wrong line is enough, even if another line is wrong by the opposite amount."""
    receipt = compute(
        NOTHING, snapshot_of(count("blue", accepted=3, completed=2), count("green", accepted=3, completed=4))
    )
    assert receipt.accepted == receipt.completed
    assert not receipt.adds_up


def test_a_snapshot_is_kept_until_the_rollout_ends(tmp_path: Path) -> None:
    """The counts from before a rollout can be read by a recovery, and are not a record in the history."""
    host = Host(True, tmp_path, tmp_path, tmp_path, tmp_path, tmp_path)
    journal, before = (
        Journal(host),
        snapshot_of(count(accepted=10, completed=8, in_flight=2), count("green", adopted=3)),
    )
    with journal.lock():
        journal.write_snapshot("20260101-000000-01", {})  # of a rollout that was killed before its first phase
        entry = begin(journal, "deploy", "1.1.0", "green")
        journal.write_snapshot(entry.record.id, before)
        entry.enter("preflight")
    assert journal.read_snapshot(entry.record.id) == before
    assert journal.read_snapshot("20260101-000000-01") is None
    assert [one.id for one in journal.records()] == [entry.record.id]
    entry.end("done")
    assert journal.read_snapshot(entry.record.id) is None
    assert [path.name for path in (tmp_path / "history").iterdir()] == [f"{entry.record.id}.json"]


def test_a_snapshot_of_another_boot_counts_nothing(tmp_path: Path) -> None:
    """A reboot numbers generations from 1 again: counts from before it are not subtracted."""
    kept = dump(snapshot_of(count(accepted=10, completed=10)))
    assert load(kept.encode()) == snapshot_of(count(accepted=10, completed=10))
    other = json.loads(kept) | {"boot": "another"}
    assert load(json.dumps(other).encode()) == {}


def test_snapshot_reads_what_workers_after(tmp_path: Path) -> None:
    """The state files tell running workers, workers killed with requests in flight, and workers that ended normally."""
    host = Host(True, tmp_path, tmp_path / "run", tmp_path, tmp_path, tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait(10)
    own = int(Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19])
    directory = host.runtime / "blue/7"
    directory.mkdir(parents=True)
    record = {"generation": 7, "slot": "blue", "version": "1", "release": "", "master": os.getpid(), "start_ticks": own}
    (directory / "generation.json").write_text(json.dumps(record))

    def worker(name: int, pid: int, start_ticks: int, **more: object) -> None:
        account = {
            "pid": pid,
            "start_ticks": start_ticks,
            "version": "1",
            "phase": "ready",
            "ledger": {"accepted": name},
            **more,
        }
        (directory / f"{name}.json").write_text(json.dumps(account))

    worker(1, os.getpid(), own, in_flight=2)
    worker(2, dead.pid, 1, in_flight=3)
    worker(3, dead.pid + 1, 1, phase="gone", in_flight=0)
    (host.runtime / "blue/8").mkdir()
    (host.runtime / "blue/8/generation.json").write_text("garbage")
    worker(4, dead.pid + 2, 1, in_flight=0)
    worker(5, dead.pid + 3, 1, phase="loading")
    (directory / "6.json").write_text('{"pid": ')
    (directory / "7.new").write_text("{}")
    seen = {one.numbers["accepted"]: (one.in_flight, one.died, one.killed) for one in snapshot(host).values()}
    assert seen == {
        1: (2, False, False),
        2: (3, True, True),
        3: (0, False, False),
        4: (0, False, True),
        5: (0, False, False),
    }
    record["start_ticks"] = own - 1  # the master was killed
    (directory / "generation.json").write_text(json.dumps(record))
    assert {one.numbers["accepted"] for one in snapshot(host).values() if one.killed} == {1, 2, 3, 4}
    (directory / "generation.json").write_text(json.dumps(record | {"stopping": True}))
    assert {one.numbers["accepted"] for one in snapshot(host).values() if one.killed} == {2, 4}


def test_a_worker_whose_weights_were_replaced_has_a_line_for_each_version(tmp_path: Path) -> None:
    """Requests in flight at the change count for the newer version; every request is counted once."""
    host = Host(True, tmp_path, tmp_path / "run", tmp_path, tmp_path, tmp_path)
    own = int(Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19])
    directory = host.runtime / "blue/1"
    directory.mkdir(parents=True)
    record = {"generation": 1, "slot": "blue", "version": "3", "release": "", "master": os.getpid(), "start_ticks": own}
    (directory / "generation.json").write_text(json.dumps(record))

    def after(version: str, accepted: int, completed: int, *past: tuple[str, int, int]) -> Snapshot:
        account = {
            "pid": os.getpid(),
            "start_ticks": own,
            "version": version,
            "phase": "ready",
            "in_flight": accepted - completed,
            "ledger": {"accepted": accepted, "completed": completed},
            "past": [{"version": name, "ledger": {"accepted": a, "completed": c}} for name, a, c in past],
        }
        (directory / "1.json").write_text(json.dumps(account))
        return snapshot(host)

    before = after("1", 10, 8)
    receipt = compute(before, after("3", 30, 29, ("1", 17, 14), ("2", 20, 20)))
    lines = [(one.version, one.accepted, one.completed, one.in_flight) for one in receipt.lines]
    assert lines == [("1", 6, 6, 0), ("2", 6, 6, 0), ("3", 10, 9, 1)]
    assert receipt.adds_up
    assert (receipt.accepted, receipt.completed, receipt.in_flight) == (20 + 2, 21, 1)
    later = compute(snapshot(host), after("1", 35, 35, ("1", 17, 14), ("2", 20, 20), ("3", 33, 31)))
    assert [(one.version, one.accepted, one.completed) for one in later.lines] == [("1", 4, 4), ("3", 2, 2)]
    assert later.adds_up


def test_a_reused_pid_is_not_the_worker(tmp_path: Path) -> None:
    """A worker whose pid belongs to a later process is dead, and its requests in flight have failed."""
    host = Host(True, tmp_path, tmp_path / "run", tmp_path, tmp_path, tmp_path)
    directory = host.runtime / "green/1"
    directory.mkdir(parents=True)
    record = {"generation": 1, "slot": "green", "version": "1", "release": "", "master": os.getpid(), "start_ticks": 1}
    (directory / "generation.json").write_text(json.dumps(record))
    account = {"pid": os.getpid(), "start_ticks": 1, "version": "1", "phase": "ready", "in_flight": 1}
    (directory / f"{os.getpid()}.json").write_text(json.dumps(account | {"ledger": {"accepted": 1}}))
    receipt = compute(NOTHING, snapshot(host))
    assert (receipt.accepted, receipt.failed, receipt.in_flight, receipt.adds_up) == (1, 1, 0, True)
