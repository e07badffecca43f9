"""The frozen workers of a slot that takes no more requests: nobody waits for them, and what they lose is counted."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from deploy.host import Host
from deploy.rollout.liveness import SILENCE, Heartbeats, Silent
from deploy.systemd.systemctl import Systemd
from service.contract.processes import descriptors

__all__ = ["FrozenWorkers"]

_POLL = 0.05  # seconds between two looks
_GRACE = 0.5  # seconds for a worker that was continued to write its state file
_DEATH = 5.0  # seconds for a worker that was killed to end
_REAP = 0.1  # seconds for the master to notice that
_ESTABLISHED = "01"  # a state in /proc/net/tcp


class FrozenWorkers:
    """Continues frozen workers, or kills them.

    One that was stopped by a signal is continued (SIGCONT): it follows `live` then, and hands its connections over as
    any other. One that still gives no sign of life is killed, because the kernel keeps its connections open for as long
    as it lives, and their clients wait. Before that its master is told to start no other (SIGWINCH): then it passes on
    the connections that wait in the backlog of handoff.sock.
    """

    def __init__(self, host: Host, systemd: Systemd, slot: str) -> None:
        self.heartbeats = Heartbeats(host, slot)
        self._systemd = systemd
        self._unit = host.unit(slot)
        self.has_killed = False
        self.in_flight = 0
        """Requests in flight in the workers that were killed."""
        self.unread = 0
        """Requests, at least, that they had not read: one for each connection with unread bytes."""
        self._continued: set[int] = set()

    @property
    def lost(self) -> int:
        """Requests that were lost with the workers that were killed."""
        return self.in_flight + self.unread

    def look(self) -> bool:
        """Continue or kill frozen workers; returns whether there are any. To be called several times a second."""
        silent = self.heartbeats.silent()
        for one in silent:
            if one.worker.pid not in self._continued:
                self._continued.add(one.worker.pid)
                self._send(one.generation.master, signal.SIGCONT)
                self._send(one.worker.pid, signal.SIGCONT)
        self._kill([one for one in silent if one.seconds >= SILENCE + _GRACE])
        return bool(silent)

    def end(self) -> None:
        """Return when there are none any more: at once, unless some have been silent already."""
        while self.look():
            time.sleep(_POLL)

    def _kill(self, silent: list[Silent]) -> None:
        if not silent:
            return
        self.has_killed = True
        workers = [one.worker for one in silent]
        for one in silent:
            self._send(one.generation.master, signal.SIGWINCH)
        for worker in workers:  # one that spins must read nothing while it is counted
            self._send(worker.pid, signal.SIGSTOP)
        self.in_flight += sum(worker.in_flight for worker in workers)
        self.unread += _unread([worker.pid for worker in workers])
        for worker in workers:
            self._send(worker.pid, signal.SIGKILL)
        deadline = time.monotonic() + _DEATH
        while any(worker.is_alive for worker in workers) and time.monotonic() < deadline:
            time.sleep(_POLL)
        time.sleep(_REAP)

    def _send(self, pid: int, number: signal.Signals) -> None:
        self._systemd.kill_process(self._unit, pid, number)


def _unread(pids: Collection[int]) -> int:
    """Return the number of open TCP connections of some processes that have bytes which were not read."""
    found: set[str] = set()
    for pid in pids:
        with suppress(OSError):
            sockets = descriptors(pid)
            for name in ("tcp", "tcp6"):
                rows = [line.split() for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
                found |= {row[9] for row in rows if _has_unread(row) and f"socket:[{row[9]}]" in sockets}
    return len(found)


def _has_unread(row: list[str]) -> bool:
    return row[3] == _ESTABLISHED and int(row[4].partition(":")[2], 16) > 0
