"""The descriptors that the service manager passes to the unit: its listening sockets, and stored client connections.

A client connection is stored when no process can have it: the master was killed, or the unit restarts. The unit's next
master gets it back, and its client has waited meanwhile instead of being disconnected.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from service.handover.fd_passing import Outcome, send_fd
from service.process.sdnotify import ServiceManager

__all__ = ["Descriptors"]

_CLIENT = "client"  # FDNAME= of a stored connection
_FIRST = 3


@dataclass
class Descriptors:
    """What this process was started with."""

    listeners: int = 0
    """Number of sockets that accept connections."""
    clients: list[socket.socket] = field(default_factory=list)
    _removed: bool = False

    @classmethod
    def take(cls) -> Descriptors:
        """Take the stored connections, so that Gunicorn finds nothing but listening sockets in $LISTEN_FDS."""
        if os.environ.get("LISTEN_PID") != str(os.getpid()):
            return cls()
        count = int(os.environ.get("LISTEN_FDS", 0))
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")[:count]
        stored = names.count(_CLIENT)  # systemd passes them after the sockets of socket units
        os.environ["LISTEN_FDS"] = str(count - stored)
        clients = [socket.socket(fileno=_FIRST + number) for number in range(count - stored, count)]
        for client in clients:
            client.set_inheritable(False)
        return cls(sum(map(_accepts, range(_FIRST, _FIRST + count - stored))), clients)

    def store(self, client: socket.socket, manager: ServiceManager) -> Outcome:
        """Store a client's connection with the service manager."""
        try:
            return Outcome.SENT if manager.store(client.fileno(), _CLIENT) else Outcome.NO_RECEIVER
        except BlockingIOError:
            return Outcome.TRY_AGAIN

    def pass_clients(self, owner: Path, manager: ServiceManager) -> None:
        """Pass the stored connections to the generation that listens at `owner`, as many as it takes for now."""
        if self.clients and not self._removed:
            manager.remove_stored(_CLIENT)
            self._removed = True
        while self.clients and send_fd(self.clients[-1].fileno(), owner) is Outcome.SENT:
            self.clients.pop().close()

    def close_clients(self) -> None:
        """Close this process's copies, in a worker: the last copy of a connection that is closed ends it."""
        for client in self.clients:
            client.close()
        self.clients.clear()


def _accepts(descriptor: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as found:
            return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False
