"""`glmctl sandbox`: a private manager, the command's exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.box import CODE, wait_for


def _sandbox(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["glmctl", "sandbox", "--", "sh", "-c", command], capture_output=True, text=True, timeout=60, cwd=CODE
    )


def _left() -> set[Path]:
    places = (Path(tempfile.gettempdir()), Path("/dev/shm"), *Path("/sys/fs/cgroup").glob("*"))
    return {path for place in places for path in place.glob("glm-sandbox-*")}


def test_plain_commands_address_the_private_manager() -> None:
    """Inside, glmctl and systemctl --user need no further words, the root is empty, and the socket listens."""
    before = _left()
    done = _sandbox("systemctl --user is-active glm.socket; systemctl --user is-system-running; glmctl status --json")
    assert done.stdout.splitlines()[:2] == ["active", "running"]
    assert '"live": null' in done.stdout
    assert '"listen": "127.0.0.1:' in done.stdout
    assert _left() <= before


def test_the_exit_code_is_the_commands() -> None:
    """Whatever the command says, the sandbox says, a signal and a missing command included."""
    assert _sandbox("exit 42").returncode == 42
    assert _sandbox("kill -9 $$").returncode == 137
    assert subprocess.run(["glmctl", "sandbox", "--", "no-such-command"], capture_output=True).returncode == 127


def test_nothing_outlives_a_sandbox_that_is_killed() -> None:
    """Kill -9 of the sandbox: its manager and units leave by themselves, and the next sandbox sweeps up."""
    before = _left()
    with subprocess.Popen(
        ["glmctl", "sandbox", "--", "sh", "-c", "echo $XDG_RUNTIME_DIR; exec sleep 300"],
        stdout=subprocess.PIPE,
        text=True,
    ) as box:
        assert box.stdout is not None
        runtime = Path(box.stdout.readline().strip())
        assert _managers(runtime)
        sleeper = int(subprocess.run(["pgrep", "-P", str(box.pid), "sleep"], capture_output=True, text=True).stdout)
        box.send_signal(signal.SIGKILL)
        box.wait()
        os.kill(sleeper, signal.SIGKILL)
    wait_for(lambda: not _managers(runtime))
    time.sleep(0.1)
    _sandbox("true")
    assert _left() <= before


def _managers(runtime: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            named = f"XDG_RUNTIME_DIR={runtime}".encode() in (entry / "environ").read_bytes()
            if named and b"systemd" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
