"""systemctl commands that wait for a job."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from deploy.systemd.systemctl import Systemd

SYSTEMCTL = """#!/bin/sh
cd "$(dirname "$0")" && echo "$*" >> calls
[ "$(wc -l < calls)" -gt {answers} ] && exit {code}
echo "{said}" >&2
exit 1
"""
REEXEC = "Warning! D-Bus connection terminated."  # and then: Failed to wait for response: Connection reset by peer


@pytest.mark.parametrize(
    ("answers", "said", "code", "calls"),
    [(0, "", 0, 1), (2, REEXEC, 0, 3), (2, REEXEC, 1, 3), (9, "Job for glm@blue.service failed.", 0, 1)],
)
def test_a_job_outlives_the_connection_to_the_manager(
    answers: int, said: str, code: int, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manager that executes itself anew keeps its jobs: their outcome counts, not that of the first systemctl."""
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(answers=answers, said=said, code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Systemd(user=False).starting("glm@blue.service") as job:
        while not job.done:
            time.sleep(0.01)
    assert (tmp_path / "calls").read_text().splitlines() == ["--no-pager start glm@blue.service"] * calls
    assert job.succeeded == (code == 0 and "failed" not in said)
