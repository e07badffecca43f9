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
import stat
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from service.contract.route import MAX_NOTE
from service.handover.acceptor import Acceptor

__all__ = ["FdReceiver", "Outcome", "Received", "receive", "send_fd"]

_PAYLOAD = b"c"  # descriptors can only be sent with at least one byte
_SEND_TIMEOUT = 5.0  # seconds between connect and send, after which a sender is dropped
_MAX_DESCRIPTORS = 2  # of one message
_ROOT = 0

logger = logging.getLogger("gunicorn.error")


class Outcome(enum.Enum):
    """The result of an attempt to pass a connection."""

    SENT = enum.auto()
    TRY_AGAIN = enum.auto()
    NO_RECEIVER = enum.auto()


class Received(NamedTuple):
    """A client's connection, the bytes that were read from it and not answered, and the sender's note."""

    client: socket.socket
    unread: bytes
    note: bytes


def send_fd(descriptor: int, owner: Path, unread: bytes = b"", note: bytes = b"") -> Outcome:
    """Send the open connection `descriptor` to the generation whose handoff socket is `owner`. Never blocks.

    `unread` is what was read from the connection and not answered. It is sent as a second descriptor, of a memory file
    (memfd), because a socket buffer limits the size of a message. `note`, of at most MAX_NOTE bytes, goes in the
    message itself; a receiver of an earlier version does not read it.

    After SENT the caller must close its copy of the descriptor; the client sees no FIN while the other copy is open.
    After any other outcome the connection stays with the caller.
    """
    with ExitStack() as stack:
        try:
            channel = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            channel.connect(str(owner))
            descriptors = [descriptor]
            if unread:
                file = stack.enter_context(os.fdopen(os.memfd_create("unread"), "wb", buffering=0))
                file.write(unread)
                descriptors.append(file.fileno())
            socket.send_fds(channel, [_PAYLOAD + note[:MAX_NOTE]], descriptors)
        except (FileNotFoundError, ConnectionRefusedError):
            return Outcome.NO_RECEIVER
        except OSError:  # backlog full, no descriptor left, or the receiver closed after connect
            return Outcome.TRY_AGAIN
    return Outcome.SENT


def receive(channel: socket.socket) -> Received | None:
    """Receive a client connection and what belongs to it; None if the sender closed without sending.

    Raises BlockingIOError if nothing was sent yet. Without a free descriptor (RLIMIT_NOFILE) the kernel discards what
    was sent: the client is disconnected then, which is logged, and None is returned. None is returned too, and logged,
    if the sender is neither this process's user nor root, or what it sent is no connection.
    """
    if (uid := _uid(channel)) not in (os.geteuid(), _ROOT):
        logger.error("a connection from user %d was refused: it may not hand anything over", uid)
        return None
    try:
        payload, descriptors, flags, _ = socket.recv_fds(channel, len(_PAYLOAD) + MAX_NOTE, _MAX_DESCRIPTORS)
    except BlockingIOError:
        raise
    except OSError:
        return None
    if flags & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.close(descriptor)
        logger.error("a connection that was handed over is lost: this process has too many open files")
        return None
    if not descriptors:
        return None
    if not _is_connection(descriptors[0]) or not all(map(_is_file, descriptors[1:])):
        logger.error("what user %d handed over is no client connection", uid)
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    client = socket.socket(fileno=descriptors[0])
    client.set_inheritable(False)
    client.setblocking(False)
    return Received(client, b"".join(map(_read, descriptors[1:])), payload[len(_PAYLOAD) :])


class FdReceiver:
    """Receives connections from a handoff socket, and calls `adopt` with each, its bytes and its note.

    All workers of a generation share the socket.
    """

    def __init__(self, listener: socket.socket, adopt: Callable[[socket.socket, bytes, bytes], None]) -> None:
        self._listener = listener
        self._adopt = adopt
        self._acceptor = Acceptor([listener], self._receive, descriptors=1 + _MAX_DESCRIPTORS)
        self._accepted: set[socket.socket] = set()

    @property
    def is_expecting(self) -> bool:
        """Whether a sender was accepted that has not sent yet: this process must wait for its connection."""
        return bool(self._accepted)

    def start(self) -> None:
        """Begin to receive."""
        self._acceptor.start()

    def pause(self) -> None:
        """Leave what comes in the backlog, until `start`."""
        self._acceptor.stop()

    def stop(self) -> None:
        """Receive what is in the backlog, then stop; the other workers go on."""
        self._acceptor.stop()
        while self.accept():
            pass

    def accept(self) -> int:
        """Accept some of the senders that wait; returns how many."""
        return self._acceptor.accept(self._listener)

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
        descriptor, loop = channel.fileno(), asyncio.get_running_loop()
        self._accepted.add(channel)

        def readable() -> None:
            loop.remove_reader(descriptor)
            self._accepted.discard(channel)
            timeout.cancel()
            self._receive(channel)

        def timed_out() -> None:
            loop.remove_reader(descriptor)
            self._accepted.discard(channel)
            channel.close()

        loop.add_reader(descriptor, readable)
        timeout = loop.call_later(_SEND_TIMEOUT, timed_out)


def _uid(channel: socket.socket) -> int:
    """Return the user of the process that connected to the channel."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)


def _is_connection(descriptor: int) -> bool:
    """Return whether it is a stream socket that does not listen. Its client may have disconnected meanwhile."""
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        return False
    listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    is_connection = found.type == socket.SOCK_STREAM and not listens
    found.detach()
    return is_connection


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _read(descriptor: int) -> bytes:
    """Read the whole file from its start, and close it."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()
