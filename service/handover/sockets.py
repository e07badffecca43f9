"""The slot's Unix sockets: bound by the master, shared by its workers, published by rename when all are ready."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path

from service.handover.acceptor import require
from service.handover.fd_passing import BUNDLE, SOCKET_NAME, Outcome, Received, receive, send_bundle, send_fd

__all__ = ["SlotSockets"]

_BACKLOG = 4096


@dataclass(frozen=True)
class SlotSockets:
    """`http.sock` serves plain HTTP to this slot alone, `handoff.sock` receives client connections.

    Each is bound in the generation's own directory and renamed to the slot's, so that the slot's path always leads to
    the newest ready generation.
    """

    slot_directory: Path
    generation_directory: Path
    http: socket.socket
    handoff: socket.socket
    http_inode: tuple[int, int]
    handoff_inode: tuple[int, int]

    @classmethod
    def bind(cls, slot_directory: Path, generation_directory: Path) -> SlotSockets:
        """Bind both sockets, without publishing them."""
        http, http_inode = _listen(generation_directory / "http.sock")
        handoff, handoff_inode = _listen(generation_directory / SOCKET_NAME)
        return cls(slot_directory, generation_directory, http, handoff, http_inode, handoff_inode)

    def publish(self, name: str) -> None:
        """Rename the socket `name` to the slot's path of that name."""
        bound = SOCKET_NAME if name == "handoff.sock" else name
        (self.generation_directory / bound).rename(self.slot_directory / name)

    @property
    def are_published(self) -> bool:
        """Whether the slot's handoff path leads to this socket: not replaced by a newer generation, nor withdrawn."""
        try:
            return _inode(self.slot_directory / "handoff.sock") == self.handoff_inode
        except OSError:
            return False

    def forward(self, owner: Path) -> None:
        """Pass on the connections in the backlog of the handoff socket; for a master without workers.

        Data that clients send meanwhile stays in the kernel. Stops when the owner's backlog is full; the message that
        could not be sent goes back to the end of this backlog, where it takes the place that it had.
        """
        while True:
            try:
                require(1 + BUNDLE, self.handoff)
                channel, _ = self.handoff.accept()
            except OSError:
                return
            with channel:
                channel.setblocking(False)
                try:
                    received = receive(channel)
                except OSError:  # the sender has connected and not sent yet: its send fails, and it tries again
                    continue
            unsent = _send(received, owner)
            _send(unsent, self.slot_directory / "handoff.sock")
            for one in received:
                one.client.close()
            if unsent:
                return

    def withdraw(self) -> None:
        """Remove the slot's paths that lead to these sockets, so that nothing is sent to a master that ends."""
        for name, inode in (("handoff.sock", self.handoff_inode), ("http.sock", self.http_inode)):
            path = self.slot_directory / name
            with contextlib.suppress(OSError):
                if _inode(path) == inode:
                    path.unlink()


def _send(received: list[Received], owner: Path) -> list[Received]:
    """Send the connections of one message, as one if the owner takes bundles; return those that could not be sent."""
    bundle = [(one.client.fileno(), one.note) for one in received]
    if len(bundle) > 1 and send_bundle(bundle, owner) is Outcome.SENT:
        return []
    for number, (client, unread, note) in enumerate(received):
        if send_fd(client.fileno(), owner, unread, note) is not Outcome.SENT:
            return received[number:]
    return []


def _listen(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener, _inode(path)


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
