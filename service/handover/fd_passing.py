"""Passes a client connection to its owner, as a file descriptor over a Unix socket (SCM_RIGHTS).

No call waits for the other process: two generations that pass connections to each other could deadlock. The sender
connects, sends and goes on; until the receiver accepts, the connection stays in its socket's backlog, in the kernel.
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

_PAYLOAD = b"c"  # descriptors can only be sent with at least one byte
_SEND_TIMEOUT = 5.0  # seconds between connect and send, after which a sender is dropped
_BURST = 64  # senders accepted in one go

logger = logging.getLogger("gunicorn.error")


class Outcome(enum.Enum):
    """The result of an attempt to pass a connection."""

    SENT = enum.auto()
    TRY_AGAIN = enum.auto()
    NO_RECEIVER = enum.auto()


def send_fd(descriptor: int, owner: Path, unread: bytes = b"") -> Outcome:
    """Send the open connection `descriptor` to the generation whose handoff socket is `owner`. Never blocks.

    `unread` is what was read from the connection and not answered. It is sent as a second descriptor, of a memory file
    (memfd), because a socket buffer limits the size of a message.

    After SENT the caller must close its copy of the descriptor; the client sees no FIN while the other copy is open.
    After any other outcome the connection stays with the caller.
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
        except OSError:  # backlog full, too many descriptors in flight, or the receiver closed after connect
            return Outcome.TRY_AGAIN
    return Outcome.SENT


def receive(channel: socket.socket) -> tuple[socket.socket, bytes] | None:
    """Receive a client connection and the bytes that were read from it; None if the sender closed without sending.

    Raises BlockingIOError if nothing was sent yet.
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
    """Receives connections from a handoff socket, and calls `adopt` with each and the bytes that were read from it.

    All workers of a generation share the socket.
    """

    def __init__(self, listener: socket.socket, adopt: Callable[[socket.socket, bytes], None]) -> None:
        self._listener = listener
        self._adopt = adopt
        self._loop = asyncio.get_running_loop()
        self._accepted: set[socket.socket] = set()

    @property
    def is_expecting(self) -> bool:
        """Whether a sender was accepted that has not sent yet: this process must wait for its connection."""
        return bool(self._accepted)

    def start(self) -> None:
        """Begin to receive."""
        self._loop.add_reader(self._listener.fileno(), self.accept)

    def stop(self) -> None:
        """Receive what is in the backlog, then stop; the other workers go on."""
        self._loop.remove_reader(self._listener.fileno())
        while self.accept():
            pass

    def accept(self) -> int:
        """Accept up to _BURST senders; returns how many there were."""
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
        except BlockingIOError:  # the sender has connected and not sent yet
            self._receive_later(channel)
            return
        channel.close()
        if received:
            self._adopt(*received)

    def _receive_later(self, channel: socket.socket) -> None:
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
    """Read the whole file from its start, and close it."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()
