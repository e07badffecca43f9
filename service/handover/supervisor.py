"""What a worker asks of its generation's master."""

from __future__ import annotations

import socket
from typing import Protocol

from service.handover.fd_passing import Outcome

__all__ = ["Supervisor"]


class Supervisor(Protocol):
    """The generation's master as its workers see it, and what they do in its place when it was killed."""

    @property
    def is_running(self) -> bool:
        """Whether the master runs. Then another worker receives what this one passes to its own generation."""

    def withdraw(self) -> None:
        """Remove the slot's sockets where they lead to this generation."""

    def store(self, client: socket.socket) -> Outcome:
        """Leave a client's connection to the service manager, for the unit's next master."""
