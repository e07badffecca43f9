"""Passes a client connection to its owner, as a file descriptor over a Unix socket (SCM_RIGHTS).

No call waits for the other process, because two generations that pass connections to each other would deadlock. The
sender connects, sends and goes on; what the receiver has not accepted yet stays in its socket's backlog, in the kernel.
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

__all__ = ["FdReceiver", "Outcome", "receive", "send_fd"]

_PAYLOAD = b"c"  # a descriptor needs at least one byte to travel with
_SEND_TIMEOUT = 5.0  # seconds that a sender may take between connecting and sending
_BURST = 64

logger = logging.getLogger("gunicorn.error")


class Outcome(enum.Enum):
    """The result of an attempt to pass a connection."""

    SENT = enum.auto()
    TRY_AGAIN = enum.auto()
    NO_RECEIVER = enum.auto()


def send_fd(descriptor: int, owner: Path, unread: bytes = b"") -> Outcome:
    """Send the open connection `descriptor` to the generation that listens at `owner`. Never blocks.

    `unread` is what was read from the connection and not answered. It travels in a second descriptor, a memory file,
    whose size no socket buffer limits.

    After SENT the caller closes its copy; no FIN is sent while the other copy is open. Otherwise the connection is
    still the caller's.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as channel, ExitStack() as stack:
        try:
            channel.connect(str(owner))
            descriptors = [descriptor]
            if unread:
                file = stack.enter_context(os.fdopen(os.memfd_create("unread"), "wb", buffering=0))
                file.write(unread)
                descriptors.append(file.fileno())
            socket.send_fds(channel, [_PAYLOAD], descriptors)
        except (FileNotFoundError, ConnectionRefusedError):
            return Outcome.NO_RECEIVER
        except OSError:  # backlog full, too many descriptors in flight, or the receiver died between the two calls
            return Outcome.TRY_AGAIN
    return Outcome.SENT


def receive(channel: socket.socket) -> tuple[socket.socket, bytes] | None:
    """Receive a client connection and what was read from it; None when the sender closed without sending.

    Raises BlockingIOError when nothing has been sent yet.
    """
    try:
        _, descriptors, _, _ = socket.recv_fds(channel, len(_PAYLOAD), 2)
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


class FdReceiver:
    """Receives connections from a handoff socket that all workers of the generation share."""

    def __init__(self, listener: socket.socket, adopt: Callable[[socket.socket, bytes], None]) -> None:
        self._listener = listener
        self._adopt = adopt
        self._loop = asyncio.get_running_loop()
        self._accepted: set[socket.socket] = set()

    @property
    def is_expecting(self) -> bool:
        """Whether a sender was accepted that has not sent yet: its connection will belong to this process."""
        return bool(self._accepted)

    def start(self) -> None:
        """Watch the socket."""
        self._loop.add_reader(self._listener.fileno(), self.accept)

    def stop(self) -> None:
        """Receive what waits already, then leave the socket to the other workers."""
        self._loop.remove_reader(self._listener.fileno())
        while self.accept():
            pass

    def accept(self) -> int:
        """Accept up to a burst of senders; returns how many there were."""
        for accepted in range(_BURST):
            try:
                channel, _ = self._listener.accept()
            except BlockingIOError:
                return accepted
            except OSError as error:
                logger.warning("cannot receive a connection: %s", error)
                return 0
            channel.setblocking(False)
            self._receive(channel)
        return _BURST

    def _receive(self, channel: socket.socket) -> None:
        try:
            received = receive(channel)
        except BlockingIOError:  # accepted before the sender has sent
            self._await(channel)
            return
        channel.close()
        if received:
            self._adopt(*received)

    def _await(self, channel: socket.socket) -> None:
        descriptor = channel.fileno()
        self._accepted.add(channel)

        def readable() -> None:
            self._loop.remove_reader(descriptor)
            self._accepted.discard(channel)
            timeout.cancel()
            self._receive(channel)

        def timed_out() -> None:
            self._loop.remove_reader(descriptor)
            self._accepted.discard(channel)
            channel.close()

        self._loop.add_reader(descriptor, readable)
        timeout = self._loop.call_later(_SEND_TIMEOUT, timed_out)


def _read(descriptor: int) -> bytes:
    """Read a whole file from its start and close it."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()
