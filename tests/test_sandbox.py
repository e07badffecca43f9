"""`glmctl sandbox`: a private manager, the command's exit code, and complete removal at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from deploy.systemd import sandbox
from tests.box import CODE, wait_for

PLACES = "echo $XDG_RUNTIME_DIR; dirname $XDG_CONFIG_HOME"


def _sandbox(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["glmctl", "sandbox", "--", "sh", "-c", command], capture_output=True, text=True, timeout=60, cwd=CODE
    )


def _left(runtime: Path, directory: Path) -> list[Path]:
    """Return what is left of a sandbox: its two directories, and its cgroups."""
    places = (runtime, directory, *(parent / directory.name for parent in Path("/sys/fs/cgroup").glob("*")))
    return [path for path in places if path.exists()]


def test_plain_commands_address_the_private_manager() -> None:
    """Inside, glmctl and systemctl --user need no further options, the root is empty, and the socket listens."""
    commands = "systemctl --user is-active glm.socket; systemctl --user is-system-running; glmctl status --json"
    done = _sandbox(f"{PLACES}; {commands}")
    runtime, directory, *lines = done.stdout.splitlines()
    assert lines[:2] == ["active", "running"]
    assert '"live": null' in done.stdout
    assert '"listen": "127.0.0.1:' in done.stdout
    assert _left(Path(runtime), Path(directory)) == []


def test_the_exit_code_is_the_commands() -> None:
    """The sandbox ends with the exit code of the command, a signal and a missing command included."""
    assert _sandbox("exit 42").returncode == 42
    assert _sandbox("kill -9 $$").returncode == 137
    assert subprocess.run(["glmctl", "sandbox", "--", "no-such-command"], capture_output=True).returncode == 127


def test_nothing_outlives_a_sandbox_that_is_killed() -> None:
    """After kill -9 of the sandbox its manager and units stop, and the next sandbox removes its files."""
    with subprocess.Popen(
        ["glmctl", "sandbox", "--", "sh", "-c", f"{PLACES}; exec sleep 300"],
        stdout=subprocess.PIPE,
        text=True,
    ) as box:
        assert box.stdout is not None
        runtime, directory = (Path(box.stdout.readline().strip()) for _ in range(2))
        assert _managers(runtime)
        sleeper = int(subprocess.run(["pgrep", "-P", str(box.pid), "sleep"], capture_output=True, text=True).stdout)
        box.send_signal(signal.SIGKILL)
        box.wait()
        os.kill(sleeper, signal.SIGKILL)
    wait_for(lambda: not _managers(runtime))
    assert _left(runtime, directory)

    def swept() -> bool:
        _sandbox("true")
        return not _left(runtime, directory)

    wait_for(swept)


def test_sandboxes_that_start_at_the_same_time_do_not_remove_each_other() -> None:
    """A sandbox's directory exists until the sandbox removes it, however many others start meanwhile."""
    missing: list[Path] = []

    def run() -> None:
        for _ in range(100):
            sandbox._sweep()
            directory, lock = sandbox._directory(None)
            (directory / "data").mkdir()
            sandbox._sweep()
            if not (directory / "data").exists():
                missing.append(directory)
            sandbox._remove(directory, lock)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert missing == []


@pytest.mark.parametrize(("module", "name"), [("tempfile", "mkdtemp"), ("os", "open")])
def test_a_directory_that_is_swept_before_it_is_locked_is_replaced(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    """Another sandbox may sweep it when it was made or opened; the new sandbox has a directory nevertheless."""
    step = getattr(getattr(sandbox, module), name)
    swept: list[None] = []

    def step_and_sweep(*arguments: Any, **options: Any) -> Any:
        done = step(*arguments, **options)
        if not swept:
            swept.append(None)
            sandbox._sweep()
        return done

    monkeypatch.setattr(getattr(sandbox, module), name, step_and_sweep)
    directory, lock = sandbox._directory(None)
    assert swept
    assert directory.is_dir()
    sandbox._sweep()
    assert directory.is_dir()
    sandbox._remove(directory, lock)


def test_a_reserved_port_can_be_listened_on_and_is_given_to_nothing_else() -> None:
    """A server with SO_REUSEADDR can bind it again and again; the kernel never picks it for another socket."""
    with sandbox.reserve_port() as reserved:
        address = reserved.getsockname()
        for _ in range(2):
            with socket.create_server(address) as server, socket.create_connection(address) as client:
                server.accept()[0].close()
                assert client.recv(1) == b""
        for _ in range(1000):
            with socket.socket() as other:
                other.bind(("127.0.0.1", 0))
                assert other.getsockname() != address


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
