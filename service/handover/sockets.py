"""The slot's Unix sockets: made in the master, shared by its workers, published by rename when all are ready."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path

from service.handover.fd_passing import Outcome, give, receive

_BACKLOG = 4096


@dataclass(frozen=True)
class Doors:
    """`http.sock` speaks plain HTTP to this slot alone, `handoff.sock` receives client connections.

    Each is bound under the generation's own directory and renamed to the slot's, so that the slot's path always leads
    to the newest ready generation.
    """

    slot_directory: Path
    generation_directory: Path
    http: socket.socket
    handoff: socket.socket
    http_inode: tuple[int, int]
    handoff_inode: tuple[int, int]

    @classmethod
    def bind(cls, slot_directory: Path, generation_directory: Path) -> Doors:
        """Make both sockets, not yet reachable under the slot's paths."""
        http, http_inode = _listen(generation_directory / "http.sock")
        handoff, handoff_inode = _listen(generation_directory / "handoff.sock")
        return cls(slot_directory, generation_directory, http, handoff, http_inode, handoff_inode)

    def publish(self, name: str) -> None:
        """Rename the socket `name` over the slot's path of that name."""
        (self.generation_directory / name).rename(self.slot_directory / name)

    @property
    def are_published(self) -> bool:
        """Whether the slot's handoff path leads to us: no younger generation has taken it, and we have not left."""
        try:
            return _inode(self.slot_directory / "handoff.sock") == self.handoff_inode
        except OSError:
            return False

    def forward(self, owner: Path) -> None:
        """Pass on the connections that wait at our handoff socket, when nobody of ours is there to take them.

        While a slot has no workers they stand in the socket's backlog, in the kernel: what their clients send waits
        with them. Stops where the owner takes no more for now; the one in hand then waits at our own socket again.
        """
        while True:
            try:
                giver, _ = self.handoff.accept()
            except OSError:
                return
            with giver:
                giver.setblocking(False)
                held = receive(giver)
            if held is None:
                continue
            client, sent = held
            with client:
                if give(client.fileno(), owner, sent) is not Outcome.GIVEN:
                    give(client.fileno(), self.slot_directory / "handoff.sock", sent)
                    return

    def withdraw(self) -> None:
        """Take the slot's paths away where they still lead to us: nobody shall hand anything to a leaving master."""
        for name, inode in (("handoff.sock", self.handoff_inode), ("http.sock", self.http_inode)):
            path = self.slot_directory / name
            with contextlib.suppress(OSError):
                if _inode(path) == inode:
                    path.unlink()


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
