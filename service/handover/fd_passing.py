"""Passing a client connection to its owner, as a file descriptor over a Unix socket (SCM_RIGHTS).

Nothing here ever waits for the other side: two generations that hand over to each other would wait for ever. The giver
connects, sends and goes on; what the taker has not read yet stands in the taker's backlog, in the kernel.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
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


def give(descriptor: int, owner: Path, held: bytes = b"") -> Outcome:
    """Send the open connection `descriptor` to the generation that listens at `owner`.

    `held` is what was read from it and not answered: it travels in a second descriptor, so that no buffer is too small.

    On GIVEN the caller closes its copy: no FIN is sent while the other copy is open. On anything else the connection is
    still the caller's. Never blocks.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as door, ExitStack() as stack:
        try:
            door.connect(str(owner))
            descriptors = [descriptor]
            if held:
                file = stack.enter_context(open(os.memfd_create("held"), "wb", buffering=0))  # noqa: PTH123
                file.write(held)
                descriptors.append(file.fileno())
            socket.send_fds(door, [_PASS], descriptors)
        except (FileNotFoundError, ConnectionRefusedError):
            return Outcome.NOBODY
        except OSError:  # backlog full, too many descriptors under way, the taker died between the two calls
            return Outcome.TRY_AGAIN
    return Outcome.GIVEN


def receive(giver: socket.socket) -> tuple[socket.socket, bytes] | None:
    """Take what a giver sent: a client's connection and what was read from it; None when it left without a word.

    Raises BlockingIOError when it has not sent yet.
    """
    try:
        _, descriptors, _, _ = socket.recv_fds(giver, len(_PASS), 2)
    except BlockingIOError:
        raise
    except OSError:
        return None
    if not descriptors:
        return None
    client = socket.socket(fileno=descriptors[0])
    client.set_inheritable(False)
    client.setblocking(False)
    return client, b"".join(map(_read, descriptors[1:]))


class Taker:
    """Takes connections from a handoff socket that the generation's workers share."""

    def __init__(self, listener: socket.socket, admit: Callable[[socket.socket, bytes], None]) -> None:
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
            taken = receive(giver)
        except BlockingIOError:  # we were faster than the giver
            self._await(giver)
            return
        giver.close()
        if taken:
            self._admit(*taken)

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


def _read(descriptor: int) -> bytes:
    """Read a whole file, wherever its writer stands in it, and close it."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()
