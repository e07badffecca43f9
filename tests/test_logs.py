"""`glmctl logs`: which lines of the log it shows, from the journal and in a sandbox."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deploy.cli import glmctl
from deploy.host import Host
from deploy.journal.journal import Journal, begin
from deploy.reports.log import Selection
from deploy.systemd.sandbox import LOG_VARIABLE
from tests.host_files import add_generation

BEGAN = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
BLUE, GREEN = 11, 12
SLOTS = {BLUE: "blue", GREEN: "green"}


def line(second: int, pid: int, text: str) -> str:
    at = BEGAN + timedelta(seconds=second)
    return f"[{at:%Y-%m-%d %H:%M:%S %z}] [{pid}] [INFO] {text}\n"


LINES = [
    "systemd: started\n",
    line(0, BLUE, "GET /version 200 1 ms, version 1, client 1.2.3.4, id req-1"),
    line(1, GREEN, "GET /version 200 1 ms, version 2, client 1.2.3.4, id req-2"),
    line(2, GREEN, "request req-3 failed"),
    "Traceback (most recent call last):\n",
    line(3, 13, "of a process that is not known any more"),
    line(9, 14, "rollout id-1: deploy of 1.1.0 into green (overlap): cutover"),
]


@pytest.mark.parametrize(
    ("selection", "numbers"),
    [
        (Selection(), [0, 1, 2, 3, 4, 5, 6]),
        (Selection(slot="blue"), [1]),
        (Selection(slot="green"), [2, 3, 4]),
        (Selection(request="req-2"), [2]),
        (Selection(request="req-"), []),
        (Selection(request="req-2", rollout="id-1"), [2]),
        (Selection(slot="blue", rollout="id-1"), [1, 6]),
        (Selection(until=BEGAN, rollout="id-1"), [1, 6]),
        (Selection(until=BEGAN, rollout="id-"), [1]),
        (Selection(request="req-3"), [3, 4]),
        (Selection(since=BEGAN + timedelta(seconds=1.5)), [2, 3, 4, 5, 6]),
        (Selection(until=BEGAN + timedelta(seconds=1.5)), [1, 2]),
        (Selection(slot="green", since=BEGAN + timedelta(seconds=2)), [3, 4]),
    ],
)
def test_lines_are_selected(selection: Selection, numbers: list[int]) -> None:
    """By the process that wrote them, by the request that they name, by their time; a traceback stays whole."""
    assert list(selection.select(LINES, SLOTS)) == [LINES[number] for number in numbers]


@given(st.lists(st.sampled_from(LINES)), st.sampled_from([None, "blue"]), st.sampled_from([None, "req-1"]))
def test_what_is_selected_is_a_part_in_order(lines: list[str], slot: str | None, request: str | None) -> None:
    """No line is invented, repeated or moved, and selecting again changes nothing."""
    selection = Selection(slot, request)
    found = list(selection.select(lines, SLOTS))
    remaining = iter(lines)
    assert all(line in remaining for line in found)
    assert list(selection.select(found, SLOTS)) == found


def test_the_journal_is_asked_by_its_fields() -> None:
    """Units, times and the request are matches of journalctl, which does the rest."""
    chosen = Selection("green", "req-1", BEGAN, BEGAN + timedelta(seconds=0.5))
    assert chosen.journalctl(user=True, follow=True, as_json=True) == [
        "journalctl",
        "--user",
        "--unit=glm@green.service",
        f"--since=@{BEGAN.timestamp():.3f}",
        f"--until=@{BEGAN.timestamp() + 0.5:.3f}",
        "--follow",
        "--output=json",
        "REQUEST_ID=req-1",
    ]
    chosen = Selection("green", rollout="20260101-000000-01")
    assert chosen.journalctl(user=False, follow=False, as_json=False) == [
        "journalctl",
        "_SYSTEMD_UNIT=glm@green.service",
        "+",
        "UNIT=glm@green.service",
        "_PID=1",
        "+",
        "ROLLOUT=20260101-000000-01",
    ]
    everything = ["journalctl", "--unit=glm@blue.service", "--unit=glm@green.service"]
    assert Selection().journalctl(user=False, follow=False, as_json=False) == everything


def test_in_a_sandbox_its_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the slots of the processes that have left a record, and the times of a rollout."""
    host = Host(True, tmp_path, tmp_path / "run", tmp_path / "state", tmp_path, tmp_path)
    monkeypatch.setattr(Host, "find", lambda **_: host)
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "log"))
    add_generation(host.runtime, "blue", 1, "1.0.0", "ready", pid=os.getppid())
    before = line(0, os.getppid(), "before")
    now = f"[{datetime.now(UTC):%Y-%m-%d %H:%M:%S %z}] [{os.getppid()}] [INFO] now\n"
    (tmp_path / "log").write_text(before + now)
    journal = Journal(host)
    entry = begin(journal, "deploy", "1.0.0", "blue")
    with journal.lock():
        entry.enter("preflight")

    def shown(*words: str) -> str:
        done = CliRunner().invoke(glmctl, ["logs", *words], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    assert shown("--slot", "blue") == before + now
    assert shown("--slot", "green") == ""
    of_rollout, of_glmctl = shown("--rollout", entry.record.id).splitlines(keepends=True)
    assert of_rollout == now
    assert f"rollout {entry.record.id}: deploy of 1.0.0 into blue (overlap): preflight, begun by " in of_glmctl
