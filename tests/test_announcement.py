"""What glmctl writes to the journal: who began a rollout, each phase, how it ended, and how bad that is."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from deploy.host import Host
from deploy.journal.announcement import announce_end, operator
from deploy.journal.journal import Entry, Journal, begin
from deploy.journal.record import Record, Step
from deploy.systemd.sandbox import LOG_VARIABLE
from service.contract import journald
from tests.test_access_log import decode
from tests.test_refusals import hostile

Taken = Callable[[], list[dict[str, str]]]


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Taken]:
    """The entries that the journal was sent since the last call."""
    monkeypatch.delenv(LOG_VARIABLE, raising=False)
    monkeypatch.setattr(journald, "SOCKET", tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "journal"))
        receiver.setblocking(False)

        def take() -> list[dict[str, str]]:
            found = []
            while True:
                try:
                    found.append(decode(receiver.recv(1 << 16)))
                except BlockingIOError:
                    return found

        yield take


def new_entry(state: Path) -> Entry:
    (state / "history").mkdir()
    return begin(Journal(Host(True, state, state, state, state, state)), "deploy", "1.1.0", "green")


def test_a_rollout_is_told_from_begin_to_end(entries: Taken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each phase once, with the fields that find it, and the first with who began it."""
    monkeypatch.setenv("SUDO_USER", "alice")
    entry = new_entry(tmp_path)
    with entry.journal.lock():
        for phase in ("preflight", "start", "cutover"):
            entry.enter(phase)
        entry.end("done")
    found = entries()
    texts = [one["MESSAGE"].partition(": deploy of 1.1.0 into green (overlap): ")[2] for one in found]
    assert texts[:3] == [f"preflight, begun by {operator()}", "start", "cutover"]
    assert texts[3].startswith("done after ")
    assert "alice" in operator()
    assert [one["PHASE"] for one in found] == ["preflight", "start", "cutover", "cutover"]
    for one in found:
        assert (one["ROLLOUT"], one["MODEL_VERSION"], one["SLOT"]) == (entry.record.id, "1.1.0", "green")
        assert (one["PRIORITY"], one["SYSLOG_IDENTIFIER"], one["OPERATOR"]) == ("6", "glmctl", operator())
    assert [one.get("OUTCOME") for one in found] == [None, None, None, "done"]


@pytest.mark.parametrize(
    ("outcome", "reason", "priority"),
    [
        ("done", None, 6),
        ("done", "3 requests were cut", 4),
        ("refused", "no room", 4),
        ("interrupted", "Ctrl-C", 4),
        ("rolled back", "p95", 4),
        ("not ready", "it ended", 3),
        ("failed", "no systemd", 3),
    ],
)
def test_the_end_has_its_priority(
    entries: Taken, tmp_path: Path, outcome: str, reason: str | None, priority: int
) -> None:
    """An error if the release or the host is broken, a warning if it ended otherwise than planned."""
    entry = new_entry(tmp_path)
    entry.enter("preflight")
    entry.enter("rollback")
    entry.end(outcome, reason=reason)
    *_, undone, end = entries()
    assert (undone["PRIORITY"], end["PRIORITY"]) == ("4", str(priority))
    assert outcome in end["MESSAGE"]
    assert (reason or "") in end["MESSAGE"]


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(version=hostile, reason=hostile)
def test_an_entry_is_one_line(entries: Taken, version: str, reason: str) -> None:
    """Whatever is in the record of a release, or in what a program said."""
    steps = [Step(phase="start", at="2026-01-01T00:00:00+00:00")]
    record = Record(id="1", kind="deploy", version=version, slot="green", started_at="", steps=steps)
    record.outcome, record.reason = "failed", reason
    announce_end(record)
    [found] = entries()
    assert found["MESSAGE"].isascii()
    assert found["MESSAGE"].isprintable()
    assert len(found["MESSAGE"]) <= 2000
    assert found["PRIORITY"] == "3"


def test_without_a_journal_a_rollout_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record counts."""
    monkeypatch.setattr(journald, "SOCKET", tmp_path / "nothing")
    entry = new_entry(tmp_path)
    entry.enter("preflight")
    entry.end("done")
    assert entry.journal.last() == entry.record
