"""systemctl commands that wait for a job."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from deploy.errors import GlmError
from deploy.systemd import process, systemctl
from deploy.systemd.systemctl import Systemd
from deploy.systemd.timers import Timers
from tests.release_fixtures import host_in

SYSTEMCTL = """#!/bin/sh
cd "$(dirname "$0")" && echo "$*" >> calls
[ "$(wc -l < calls)" -gt {answers} ] && exit {code}
echo "{said}" >&2
exit 1
"""
REEXEC = (
    "Warning! D-Bus connection terminated.",
    "Failed to start glm@blue.service: Transport endpoint is not connected",
    "Failed to start glm@blue.service: Message recipient disconnected from message bus without replying",
    "Failed to wait for response: Connection reset by peer",
)
"""What systemctl says while the manager executes itself anew: it depends on the moment."""
FAILED = "Job for glm@blue.service failed."


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str = "systemctl") -> None:
    """Put a program into the path."""
    program = directory / name
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("answers", "said", "code", "calls"),
    [(0, "", 0, 1), *((2, said, code, 3) for said in REEXEC for code in (0, 1)), (9, FAILED, 0, 1)],
)
def test_a_job_outlives_the_connection_to_the_manager(
    answers: int, said: str, code: int, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manager that executes itself anew keeps its jobs: their outcome counts, not that of the first systemctl."""
    install(tmp_path, monkeypatch, SYSTEMCTL.format(answers=answers, said=said, code=code))
    with Systemd(user=False).starting("glm@blue.service") as job:
        while not job.done:
            time.sleep(0.01)
    assert (tmp_path / "calls").read_text().splitlines() == ["--no-pager start glm@blue.service"] * calls
    assert job.succeeded == (code == 0 and "failed" not in said)


@pytest.mark.parametrize("said", REEXEC)
def test_a_question_to_the_manager_is_repeated(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit is not taken for one that does not run because the manager was asked while it executed itself anew."""
    answer = '[ "$(wc -l < calls)" -gt 2 ] && echo ActiveState=active && exit 0'
    script = f'#!/bin/sh\ncd "$(dirname "$0")" && echo "$LC_ALL" >> calls\n{answer}\necho "{said}" >&2\nexit 1\n'
    install(tmp_path, monkeypatch, script)
    assert Systemd(user=False).state("glm@blue.service").active == "active"
    assert (tmp_path / "calls").read_text().splitlines() == ["C.UTF-8"] * 3


def test_a_manager_that_does_not_return_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is repeated for ever."""
    monkeypatch.setattr(process, "RECONNECT", 0.2)
    monkeypatch.setattr(systemctl, "RECONNECT", 0.2)
    install(tmp_path, monkeypatch, SYSTEMCTL.format(answers=10**6, said=REEXEC[1], code=0))
    with pytest.raises(GlmError, match="Transport endpoint is not connected"):
        Systemd(user=False).daemon_reload()
    with Systemd(user=False).starting("glm@blue.service") as job:
        while not job.done:
            time.sleep(0.01)
    assert not job.succeeded


@pytest.mark.parametrize(("active", "is_lost"), [("active", False), ("inactive", True)])
def test_a_timer_that_the_manager_has_made_is_not_made_again(
    active: str, is_lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer may be lost, and the second call finds the unit."""
    said = f'echo "{REEXEC[2]}" >&2; exit 1'
    again = "echo 'Failed to start transient timer unit: Unit glm-retire-blue.timer was already loaded' >&2; exit 1"
    install(
        tmp_path,
        monkeypatch,
        f"#!/bin/sh\n[ -e $0.called ] && {{ {again}; }}\ntouch $0.called; {said}\n",
        "systemd-run",
    )
    install(tmp_path, monkeypatch, f"#!/bin/sh\necho ActiveState={active}\n")
    expectation = pytest.raises(GlmError, match="already loaded") if is_lost else nullcontext()
    with expectation:
        Timers(host_in(tmp_path, user=False)).schedule_retirement("blue", "1.0.0", 60)
