"""`glmctl demo`: a rollout under load in a private service manager."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deploy.demo import Demo
from deploy.systemd.sandbox import Sandbox
from deploy.systemd.units import Addresses
from tests.box import CODE


def test_demo_loses_no_request() -> None:
    """`glmctl demo --once` ends by itself, loses no request, and prints different answers of the two versions."""
    done = subprocess.run(["glmctl", "demo", "--once"], capture_output=True, text=True, timeout=180, cwd=CODE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing was lost" in done.stdout
    assert "requests and lost 0" in done.stdout
    before, after = done.stdout.find("1.0.0: a red thing\n"), done.stdout.find("1.1.0: a red circle\n")
    assert 0 < before < after, done.stdout


class FakeBox:
    """A sandbox whose processes do not exist."""

    def __init__(self, directory: Path) -> None:
        self.addresses = Addresses(listen="127.0.0.1:1", ui="127.0.0.1:2")
        self.log = directory / "log"
        self.env = {name: f"/tmp/a box/{name}" for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
        self.env |= {"XDG_STATE_HOME": "/tmp/state", "GLM_USER": "1"}


@dataclass
class Started:
    """A process that was started; it ends at once."""

    argv: list[str]
    stdout: Any
    stderr: Any
    others: dict[str, Any]

    def wait(self) -> int:
        return 0

    def send_signal(self, number: int) -> None:
        pass


@pytest.fixture
def played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[str, list[Started]]:
    """What an interactive demo prints, and the processes that it starts."""
    started: list[Started] = []

    def popen(argv: list[str], stdout: Any = None, stderr: Any = None, **others: Any) -> Started:
        started.append(Started(argv, stdout, stderr, others))
        return started[-1]

    monkeypatch.setattr("deploy.demo.subprocess", SimpleNamespace(Popen=popen))
    monkeypatch.setattr("deploy.demo.time.sleep", lambda _: None)
    monkeypatch.setattr("deploy.demo.click.pause", lambda text: print(text))
    monkeypatch.setattr("deploy.demo.signal.pause", lambda: None)
    monkeypatch.setattr(Demo, "_print_answer", lambda *_: None)
    monkeypatch.setattr(Demo, "_verdict", lambda *_: True)
    (tmp_path / "load.json").write_text("{}")
    demo = Demo(cast("Sandbox", FakeBox(tmp_path)), tmp_path)
    assert demo.play(interactive=True)
    demo.stay()
    return capsys.readouterr().out, started


def test_one_program_at_a_time_draws_on_the_terminal(played: tuple[str, list[Started]]) -> None:
    """The load runs beside the deploy, and writes into a file that is named."""
    out, started = played
    beside = [one for one in started if "deploy.loadtest" in one.argv]
    assert len(beside) == 1
    assert beside[0].stdout is beside[0].stderr is not None
    assert beside[0].stdout.name in out
    assert all(one.stdout is one.stderr is None for one in started if one not in beside)


def test_the_demo_says_how_to_watch_from_a_second_terminal(played: tuple[str, list[Started]], tmp_path: Path) -> None:
    """Two short lines to copy: a file of variables, quoted for a shell, and the command; before the deploy begins."""
    out, _ = played
    before = out.partition("Press any key")[0]
    assert f"    . {tmp_path / 'env'}\n    glmctl status --watch\n" in before
    script = f". {tmp_path / 'env'}; echo $XDG_RUNTIME_DIR; echo $GLM_USER; command -v glmctl"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "/tmp/a box/XDG_RUNTIME_DIR", "1", str(Path(sys.executable).with_name("glmctl"))
    ]  # fmt: skip


def test_the_demo_fits_80_columns(played: tuple[str, list[Started]], tmp_path: Path) -> None:
    """But for the commands that it runs, and paths of a test's own directory."""
    lines = [line.replace(str(tmp_path), "/tmp/glm-demo-12345678") for line in played[0].splitlines()]
    assert [line for line in lines if len(line) > 80 and not line.startswith("$ ")] == []
