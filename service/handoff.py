"""Passing a client connection to its owner, as a file descriptor over a Unix socket (SCM_RIGHTS).

Nothing here ever waits for the other side: two generations that hand over to each other would wait for ever. The giver
connects, sends and goes on; what the taker has not read yet stands in the taker's backlog, in the kernel.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import socket
from collections.abc import Callable
from pathlib import Path

_PASS = b"c"  # a descriptor needs at least one byte to travel with
_PATIENCE = 5.0  # seconds a giver may take between connecting and sending; it does both in one breath
_BURST = 64

logger = logging.getLogger("gunicorn.error")


class Outcome(enum.Enum):
    """What became of an attempt to hand a connection over."""

    GIVEN = enum.auto()
    TRY_AGAIN = enum.auto()
    NOBODY = enum.auto()


def give(descriptor: int, owner: Path) -> Outcome:
    """Send the open connection `descriptor` to the generation that listens at `owner`.

    On GIVEN the caller closes its copy: no FIN is sent while the other copy is open. On anything else the connection is
    still the caller's. Never blocks.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as door:
        try:
            door.connect(str(owner))
            socket.send_fds(door, [_PASS], [descriptor])
        except (FileNotFoundError, ConnectionRefusedError):
            return Outcome.NOBODY
        except OSError:  # backlog full, too many descriptors under way, the taker died between the two calls
            return Outcome.TRY_AGAIN
    return Outcome.GIVEN


class Taker:
    """Takes connections from a handoff socket that the generation's workers share."""

    def __init__(self, listener: socket.socket, admit: Callable[[socket.socket], None]) -> None:
        self._listener = listener
        self._admit = admit
        self._loop = asyncio.get_running_loop()
        self._met: set[socket.socket] = set()

    @property
    def expects(self) -> bool:
        """Whether a giver was met that has not sent yet; what it sends is ours, whatever we do meanwhile."""
        return bool(self._met)

    def start(self) -> None:
        """Watch the socket."""
        self._loop.add_reader(self._listener.fileno(), self.take)

    def stop(self) -> None:
        """Take what already waits, then leave the socket to the siblings."""
        self._loop.remove_reader(self._listener.fileno())
        while self.take():
            pass

    def take(self) -> int:
        """Admit up to a burst of waiting connections; returns how many givers were met."""
        for met in range(_BURST):
            try:
                giver, _ = self._listener.accept()
            except BlockingIOError:
                return met
            except OSError as error:
                logger.warning("cannot take a connection: %s", error)
                return 0
            giver.setblocking(False)
            self._receive(giver)
        return _BURST

    def _receive(self, giver: socket.socket) -> None:
        try:
            _, descriptors, _, _ = socket.recv_fds(giver, len(_PASS), 1)
        except BlockingIOError:  # we were faster than the giver
            self._await(giver)
            return
        except OSError:
            descriptors = []
        giver.close()
        for descriptor in descriptors:
            client = socket.socket(fileno=descriptor)
            client.set_inheritable(False)
            client.setblocking(False)
            self._admit(client)

    def _await(self, giver: socket.socket) -> None:
        descriptor = giver.fileno()
        self._met.add(giver)

        def arrived() -> None:
            self._loop.remove_reader(descriptor)
            self._met.discard(giver)
            deadline.cancel()
            self._receive(giver)

        def gave_up() -> None:
            self._loop.remove_reader(descriptor)
            self._met.discard(giver)
            giver.close()

        self._loop.add_reader(descriptor, arrived)
        deadline = self._loop.call_later(_PATIENCE, gave_up)
