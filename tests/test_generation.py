"""What a master says to systemd, heard on a real notification socket."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.contract.processes import start_ticks
from service.process.master import Master


class Listener:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """All assignments since the last call."""
        found: list[str] = []
        while True:
            try:
                found += self.socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return found


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    listener = Listener(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield listener
    listener.socket.close()


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemd: Listener) -> Iterator[Master]:
    release = tmp_path / "root/releases/1.0.0"
    release.mkdir(parents=True)
    (release / "release.json").write_text('{"version": "1.0.0"}')
    (tmp_path / "root/blue").symlink_to("releases/1.0.0")
    for name, value in (("GLM_ROOT", tmp_path / "root"), ("GLM_RUNTIME", tmp_path / "run"), ("GLM_SLOT", "blue")):
        monkeypatch.setenv(name, str(value))
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a master ticks by this timer; here it is ticked by hand
    one = Master.begin(SimpleNamespace(master_pid=0))
    yield one
    one.end()
    signal.signal(signal.SIGALRM, before)
    one.manager._notifier.socket.close()  # sdnotify keeps it open as long as a master lives
    one.sockets.http.close()
    one.sockets.handoff.close()


def _worker(master: Master, **changes: Any) -> SimpleNamespace:
    """A worker's state file, and the master that has this worker."""
    pid = os.getpid()
    account = {
        "pid": pid,
        "version": "1.0.0",
        "start_ticks": start_ticks(pid),
        "phase": "ready",
        "step": "",
        "progress": 1.0,
        "error": None,
    }
    account |= {"answering": True, "in_flight": 0, "updated_at": time.time()} | changes
    (master.directory / f"{pid}.json").write_text(json.dumps(account))
    return SimpleNamespace(WORKERS={pid: None}, num_workers=1)


def test_ready_is_said_when_the_last_worker_is_ready_and_opens_the_doors_around_it(
    master: Master, systemd: Listener, tmp_path: Path
) -> None:
    """No READY while a worker loads; then READY with MAINPID, once, and both doors lead to this generation."""
    master._tick(_worker(master, phase="loading", progress=0.5))
    assert not any(word.startswith("READY") for word in systemd.heard())
    assert not (tmp_path / "run/blue/http.sock").exists()
    server = _worker(master)
    server.num_workers = 2
    master._tick(server)
    assert "READY=1" not in systemd.heard()
    server.num_workers = 1
    master._tick(server)
    assert [f"MAINPID={os.getpid()}", "READY=1"] == systemd.heard()[:2]
    assert master.sockets.are_published
    master._tick(server)
    assert "READY=1" not in systemd.heard()


def test_only_a_load_that_moves_gets_more_time(master: Master, systemd: Listener) -> None:
    """EXTEND_TIMEOUT_USEC comes with progress, and not with mere time."""
    for progress, extended in ((0.1, True), (0.1, False), (0.2, True), (0.2, False)):
        master._tick(_worker(master, phase="loading", progress=progress))
        assert any(word.startswith("EXTEND_TIMEOUT_USEC=") for word in systemd.heard()) is extended


@pytest.mark.parametrize(
    ("changes", "well"),
    [
        ({}, True),
        ({"answering": False}, False),
        ({"updated_at": 0}, False),
        ({"phase": "loading", "updated_at": 0}, True),
    ],
)
def test_the_watchdog_is_fed_only_while_every_engine_answers(
    master: Master, systemd: Listener, changes: dict[str, Any], well: bool
) -> None:
    """A ready worker whose engine hangs, or that is silent, starves the watchdog; one that loads does not."""
    master._tick(_worker(master))
    systemd.heard()
    master._tick(_worker(master, **changes))
    assert ("WATCHDOG=1" in systemd.heard()) is well


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its master ends without a goodbye
def test_a_slot_without_a_release_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemd: Listener) -> None:
    """Nothing to serve: the reason is in STATUS, and the exit status is the one that systemd does not restart after."""
    for name, value in (("GLM_ROOT", tmp_path / "root"), ("GLM_RUNTIME", tmp_path / "run"), ("GLM_SLOT", "blue")):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit) as ended:
        Master.begin(SimpleNamespace(master_pid=0))
    assert ended.value.code == 3
    assert any("slot blue holds no release" in word for word in systemd.heard())
    del ended
    gc.collect()
