"""The workers through which a client's connection came, as a worker that passes it on tells the next one."""

from __future__ import annotations

import re
import time
from typing import NamedTuple, Self

__all__ = ["MAX_NOTE", "UNKNOWN", "Route", "worker_name"]

MAX_NOTE = 160
"""Bytes of the text that goes with a connection."""
UNKNOWN = "unknown"
"""In place of a worker, if the connection was in the service manager's store, or its sender is an earlier version."""

_WORKER = rf"[a-z]{{1,16}}/\d{{1,9}}/\d{{1,9}}|{UNKNOWN}"
_NOTE = re.compile(rf"({_WORKER}) ({_WORKER}) (\d{{1,9}}) (\d{{1,15}}\.\d{{1,6}})", re.ASCII)
_MOST = 999_999_999


class Route(NamedTuple):
    """How a connection came to the worker that has it now. Workers are SLOT/GENERATION/PID."""

    accepted_by: str
    handed_over_by: str
    """The last worker that passed it on."""
    handovers: int
    sent_at: float
    """When that was, in seconds of the monotonic clock, which all processes of a host share."""

    @classmethod
    def parse(cls, note: bytes) -> Self:
        """Return the route that a note has; one of unknown workers if it is damaged or missing."""
        if match := _NOTE.fullmatch(note.decode("ascii", "replace")):
            return cls(match[1], match[2], int(match[3]), float(match[4]))
        return cls(UNKNOWN, UNKNOWN, 1, time.monotonic())

    @classmethod
    def through(cls, worker: str, before: Route | None) -> Route:
        """Return the route of a connection that `worker` passes on; `before`: how it came there, if not by accept."""
        if before is None:
            return cls(worker, worker, 1, time.monotonic())
        return cls(before.accepted_by, worker, min(before.handovers + 1, _MOST), time.monotonic())

    @property
    def note(self) -> bytes:
        """The text that goes with the connection, of at most MAX_NOTE bytes."""
        return f"{self.accepted_by} {self.handed_over_by} {self.handovers} {self.sent_at:.6f}".encode()


def worker_name(slot: str, generation: int, pid: int) -> str:
    """Return the name of a worker, in routes and for operators."""
    return f"{slot}/{generation}/{pid}"
