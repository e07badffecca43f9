"""The connections whose clients are awaited, and the time that passes for them."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["AwaitedConnection", "SlowClients"]

_MAX_STEP = 1.0  # seconds that may pass at once, else a suspended worker would blame its clients


class AwaitedConnection(Protocol):
    """A connection whose client has a limited time."""

    def pass_time_to_send(self, seconds: float, *, hurry: bool) -> None:
        """Let the time pass that the client has to send its request."""

    def pass_time_to_read(self, seconds: float, *, hurry: bool) -> None:
        """Let the time pass for which the client has read nothing of its answer."""


class SlowClients:
    """Two sets of connections.

    `receiving`: a part of a request has come, and not all of it. `sending`: the client does not read as fast as it is
    answered.
    """

    def __init__(self) -> None:
        self.receiving: set[AwaitedConnection] = set()
        self.sending: set[AwaitedConnection] = set()
        self._timed_at = time.monotonic()

    def pass_time(self, *, hurry: bool) -> None:
        """Let the time since the last call pass. `hurry`: other clients wait until these connections have ended."""
        now = time.monotonic()
        seconds, self._timed_at = min(now - self._timed_at, _MAX_STEP), now
        for connection in list(self.receiving):
            connection.pass_time_to_send(seconds, hurry=hurry)
        for connection in list(self.sending):
            connection.pass_time_to_read(seconds, hurry=hurry)
