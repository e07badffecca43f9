"""The master's notifications to systemd, read from a real notification socket."""

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


class NotifySocket:
    """The service manager's end of $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def received(self) -> list[str]:
        """Return the assignments received since the last call."""
        found: list[str] = []
        while True:
            try:
                found += self.socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return found


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotifySocket]:
    notify_socket = NotifySocket(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield notify_socket
    notify_socket.socket.close()


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemd: NotifySocket) -> Iterator[Master]:
    release = tmp_path / "root/releases/1.0.0"
    release.mkdir(parents=True)
    (release / "release.json").write_text('{"version": "1.0.0"}')
    (tmp_path / "root/blue").symlink_to("releases/1.0.0")
    for name, value in (("GLM_ROOT", tmp_path / "root"), ("GLM_RUNTIME", tmp_path / "run"), ("GLM_SLOT", "blue")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("GLM_BIND", "127.0.0.1:1")  # as if started by hand
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)  # the tests call the tick themselves
    master = Master.begin(SimpleNamespace(master_pid=0))
    yield master
    master.end()
    signal.signal(signal.SIGALRM, before)
    master.manager._notifier.socket.close()  # sdnotify never closes it
    master.sockets.http.close()
    master.sockets.handoff.close()


def _worker(master: Master, *, silent: float = 0.0, **changes: Any) -> SimpleNamespace:
    """Write the state file of the master's only worker, and return the Gunicorn arbiter that has this worker.

    `silent`: seconds since the worker notified Gunicorn.
    """
    pid = os.getpid()
    state = {
        "pid": pid,
        "version": "1.0.0",
        "start_ticks": start_ticks(pid),
        "phase": "ready",
        "step": "",
        "progress": 1.0,
        "error": None,
    }
    state |= {"answering": True, "in_flight": 0} | changes
    (master.directory / f"{pid}.json").write_text(json.dumps(state))
    tmp = SimpleNamespace(last_update=lambda: time.monotonic() - silent)
    return SimpleNamespace(WORKERS={pid: SimpleNamespace(tmp=tmp)}, num_workers=1)


def test_ready_is_sent_once_when_all_workers_are_ready(master: Master, systemd: NotifySocket, tmp_path: Path) -> None:
    """READY=1 is sent with MAINPID once every worker is ready, and the slot's sockets are published then."""
    master._tick(_worker(master, phase="loading", progress=0.5))
    assert not any(line.startswith("READY") for line in systemd.received())
    assert not (tmp_path / "run/blue/http.sock").exists()
    arbiter = _worker(master)
    arbiter.num_workers = 2
    master._tick(arbiter)
    assert "READY=1" not in systemd.received()
    arbiter.num_workers = 1
    master._tick(arbiter)
    assert [f"MAINPID={os.getpid()}", "READY=1"] == systemd.received()[:2]
    assert master.sockets.are_published
    master._tick(arbiter)
    assert "READY=1" not in systemd.received()


def test_http_socket_is_published_before_ready_and_handoff_socket_after_it(
    master: Master, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that waits for READY=1 can connect to http.sock, and no connection is passed before READY=1."""
    published: list[list[str]] = []
    ready = master.manager.ready

    def notify(pid: int) -> None:
        published.append([path.name for path in (tmp_path / "run/blue").glob("*.sock")])
        ready(pid)

    monkeypatch.setattr(master.manager, "ready", notify)
    master._tick(_worker(master))
    assert published == [["http.sock"]]
    assert (tmp_path / "run/blue/handoff.sock").is_socket()


def test_start_timeout_is_extended_only_by_progress(master: Master, systemd: NotifySocket) -> None:
    """EXTEND_TIMEOUT_USEC is sent when the load has made progress since the last tick, and not otherwise."""
    for progress, extended in ((0.1, True), (0.1, False), (0.2, True), (0.2, False)):
        master._tick(_worker(master, phase="loading", progress=progress))
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in systemd.received()) is extended


def test_load_that_crashes_again_and_again_is_not_extended_forever(master: Master, systemd: NotifySocket) -> None:
    """Three attempts may extend the start timeout by their progress; those after them may not."""
    extended = []
    for attempt in range(6):
        for progress in (0.0, 0.5):
            server = _worker(master, pid=10_000 + attempt, phase="loading", progress=progress)
            server.WORKERS = {10_000 + attempt: None}
            master._tick(server)
            if any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in systemd.received()):
                extended.append((attempt, progress))
    assert extended == [(attempt, progress) for attempt in range(3) for progress in (0.0, 0.5)]


@pytest.mark.parametrize(
    ("changes", "healthy"),
    [
        ({}, True),
        ({"answering": False}, False),
        ({"silent": 6}, False),
        ({"updated_at": 0}, True),  # on a full disk
        ({"phase": "loading", "silent": 6}, True),
    ],
)
def test_watchdog_is_reset_only_while_all_workers_are_healthy(
    master: Master, systemd: NotifySocket, changes: dict[str, Any], healthy: bool
) -> None:
    """WATCHDOG=1 is withheld while a ready worker's engine hangs or it gives no sign of life; not while one loads."""
    master._tick(_worker(master))
    systemd.received()
    master._tick(_worker(master, **changes))
    assert ("WATCHDOG=1" in systemd.received()) is healthy


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sdnotify leaves its socket open
def test_slot_without_a_release_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemd: NotifySocket
) -> None:
    """Without a release the master ends with exit status 3, after which the unit is not restarted; STATUS= says why."""
    for name, value in (("GLM_ROOT", tmp_path / "root"), ("GLM_RUNTIME", tmp_path / "run"), ("GLM_SLOT", "blue")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("GLM_BIND", "127.0.0.1:1")
    with pytest.raises(SystemExit) as ended:
        Master.begin(SimpleNamespace(master_pid=0))
    assert ended.value.code == 3
    assert any("slot blue holds no release" in line for line in systemd.received())
    del ended
    gc.collect()
