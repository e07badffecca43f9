"""Gunicorn alone with uvicorn-worker: HUP replaces the workers, USR2 the master."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path

from tests.bench.peers.application import RELEASE
from tests.bench.peers.peer import START_SECONDS, VERSIONS, Peer, Process, answering, await_version

__all__ = ["GunicornHup", "GunicornUsr2"]

_CONFIGURATION = """\
bind = {address!r}
pidfile = {pidfile!r}
worker_class = "uvicorn_worker.UvicornWorker"
workers = 1
timeout = 30
graceful_timeout = 30
keepalive = 75
control_socket_disable = True
"""


class _Gunicorn(Peer):
    def versions(self) -> str:
        """See Peer."""
        return f"Gunicorn {version('gunicorn')}, uvicorn-worker {version('uvicorn-worker')}"

    def start(self, stack: ExitStack) -> None:
        """See Peer."""
        self._live = self.scratch / "live"
        self._pidfile = self.scratch / "gunicorn.pid"
        self._point(VERSIONS[0])
        configuration = self.scratch / "gunicorn.conf.py"
        configuration.write_text(_CONFIGURATION.format(address=self.address, pidfile=str(self._pidfile)))
        argv = [
            sys.executable, str(Path(sys.executable).with_name("gunicorn")), "--config", str(configuration),
            "tests.bench.peers.application:create()",
        ]  # fmt: skip
        self._process = Process(argv, self.scratch / "gunicorn.log", {RELEASE: str(self._live)})
        stack.callback(self._end)
        await_version(self.address, VERSIONS[0], self._process)

    def _point(self, version: str) -> None:
        new = self._live.with_suffix(".new")
        new.symlink_to(self.release(version))
        new.rename(self._live)

    def _masters(self) -> list[int]:
        """The pids of the running masters, the newest last."""
        pids = []
        for path in (self._pidfile, self._pidfile.with_suffix(".pid.2")):
            with suppress(OSError, ValueError):
                pid = int(path.read_text())
                os.kill(pid, 0)
                pids.append(pid)
        return pids

    def _end(self) -> None:
        for pid in self._masters():
            _end(pid)
        self._process.end()


class GunicornHup(_Gunicorn):
    """The master starts new workers, which load the release that the symlink names now, and ends the old ones."""

    name = "Gunicorn HUP"
    how = "SIGHUP; it loads the new version, too"

    def switch(self) -> None:
        """See Peer."""
        self._point(self.next_version)
        self._process.signal(signal.SIGHUP)
        self.live = 1 - self.live


class GunicornUsr2(_Gunicorn):
    """A second master starts beside the first one; then the first one is ended."""

    name = "Gunicorn USR2"
    how = "second master by USR2, SIGTERM to the first"

    def prepare(self) -> None:
        """Start the second master; from here on both versions answer new connections."""
        self._old = self._masters()[-1]
        self._point(self.next_version)
        os.kill(self._old, signal.SIGUSR2)
        deadline = time.monotonic() + START_SECONDS
        while self._masters()[-1] == self._old or answering(self.address) != self.next_version:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no second master: {(self.scratch / 'gunicorn.log').read_text()[-800:]}")
            time.sleep(0.02)

    def switch(self) -> None:
        """End the first master; its worker finishes what it has."""
        os.kill(self._old, signal.SIGTERM)
        self.live = 1 - self.live

    def finish(self) -> None:
        """Wait until the first master has ended, and the second one has its pid file."""
        if self._old == self._process.pid:
            self._process.wait(40)
        deadline = time.monotonic() + 40
        while self._pidfile.with_suffix(".pid.2").exists() and time.monotonic() < deadline:
            time.sleep(0.02)


def _end(pid: int) -> None:
    """Terminate a master that is no child of this process, and kill it after 15 s."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    return
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
