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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from service.contract.route import MAX_NOTE
from service.handover.acceptor import Acceptor, require

__all__ = ["BUNDLE", "SOCKET_NAME", "FdReceiver", "Outcome", "Received", "receive", "send_bundle", "send_fd"]

BUNDLE = 32
"""The most connections of one message."""
SOCKET_NAME = "handoffs.sock"
"""The file name to which a receiver binds its socket if it takes bundles; those of earlier versions do not.

The sender learns it from the connected socket. So it cannot mistake one receiver for another that takes its place.
"""

_ONE, _MANY = b"c", b"m"  # the first byte of a message
_SEND_TIMEOUT = 5.0  # seconds between connect and send, after which a sender is dropped
_ROOM_PAUSE = 1.0  # seconds until the next look for free descriptors
_MAX_DESCRIPTORS = 2  # of a message with one connection
_ROOT = 0
_NO_CONNECTION = "what user %d handed over is no client connection"

logger = logging.getLogger("gunicorn.error")


class Outcome(enum.Enum):
    """The result of an attempt to pass a connection."""

    SENT = enum.auto()
    TRY_AGAIN = enum.auto()
    NO_RECEIVER = enum.auto()
    ONE_BY_ONE = enum.auto()
    """The receiver takes no bundles."""


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
            channel = stack.enter_context(_connect(owner))
            descriptors = [descriptor]
            if unread:
                file = stack.enter_context(os.fdopen(os.memfd_create("unread"), "wb", buffering=0))
                file.write(unread)
                descriptors.append(file.fileno())
            socket.send_fds(channel, [_ONE + note[:MAX_NOTE]], descriptors)
        except OSError as error:
            return _outcome(error)
    return Outcome.SENT


def send_bundle(connections: Sequence[tuple[int, bytes]], owner: Path) -> Outcome:
    """Send up to BUNDLE open connections, of which nothing was read, each with its note: all of them or none.

    Otherwise as `send_fd`. It takes a small part of the time, here and at the receiver.
    """
    try:
        with _connect(owner) as channel:
            if Path(channel.getpeername()).name != SOCKET_NAME:
                return Outcome.ONE_BY_ONE
            notes = b"\n".join(note[:MAX_NOTE] for _, note in connections)
            socket.send_fds(channel, [_MANY + notes], [descriptor for descriptor, _ in connections])
    except OSError as error:
        return _outcome(error)
    return Outcome.SENT


def receive(channel: socket.socket) -> list[Received]:
    """Receive what was sent: client connections and what belongs to them; none if the sender closed without sending.

    Raises BlockingIOError if nothing was sent yet, and another OSError if the process has not as many free descriptors
    (RLIMIT_NOFILE) as a bundle may need; it stays in the channel. Without a free descriptor the kernel discards what
    was sent: the client is disconnected then, which is logged. None is received too, which is logged, if the sender is
    neither this process's user nor root, or what it sent is no connection.
    """
    if (uid := _uid(channel)) not in (os.geteuid(), _ROOT):
        logger.error("a connection from user %d was refused: it may not hand anything over", uid)
        return []
    is_bundle = channel.recv(1, socket.MSG_PEEK) == _MANY
    most = BUNDLE if is_bundle else _MAX_DESCRIPTORS
    if is_bundle:
        require(most, channel)
    size = len(_MANY) + most * (MAX_NOTE + 1)
    payload, descriptors, flags, _ = socket.recv_fds(channel, size, most)
    if flags & socket.MSG_CTRUNC:
        logger.error("a connection that was handed over is lost: this process has too many open files")
    if is_bundle:
        notes = [*payload[len(_MANY) :].split(b"\n"), *[b""] * most]
        return [
            Received(client, b"", note)
            for descriptor, note in zip(descriptors, notes, strict=False)
            if (client := _connection(descriptor, uid))
        ]
    files = descriptors[1:]
    client = _connection(descriptors[0], uid) if descriptors else None
    if client and not flags & socket.MSG_CTRUNC and all(map(_is_file, files)):
        return [Received(client, b"".join(map(_read, files)), payload[len(_ONE) :])]
    if client:
        client.close()
        if not flags & socket.MSG_CTRUNC:
            logger.error(_NO_CONNECTION, uid)
    for descriptor in files:
        os.close(descriptor)
    return []


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
        except ConnectionError:  # the sender has gone without sending
            received = []
        except OSError as error:
            logger.error("cannot receive connections: %s; next try in %s s", error, _ROOM_PAUSE)  # noqa: TRY400
            self._receive_when_there_is_room(channel)
            return
        channel.close()
        for one in received:
            self._adopt(*one)

    def _receive_when_there_is_room(self, channel: socket.socket) -> None:
        self._accepted.add(channel)
        self._acceptor.pause()  # another worker may have room for what else is in the backlog

        def try_again() -> None:
            self._accepted.discard(channel)
            self._receive(channel)

        asyncio.get_running_loop().call_later(_ROOM_PAUSE, try_again)

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


def _connect(owner: Path) -> socket.socket:
    """Connect to a handoff socket, without waiting."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        channel.connect(str(owner))
    except BaseException:
        channel.close()
        raise
    return channel


def _outcome(error: OSError) -> Outcome:
    """Return the outcome of an attempt that has failed."""
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return Outcome.NO_RECEIVER
    return Outcome.TRY_AGAIN  # backlog full, no descriptor left, or the receiver closed after connect


def _connection(descriptor: int, uid: int) -> socket.socket | None:
    """Return the stream socket, which may have no client any more; None, closed, if it is anything else."""
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
    else:
        of_socket = socket.SOL_SOCKET
        is_stream = found.getsockopt(of_socket, socket.SO_TYPE) == socket.SOCK_STREAM
        if is_stream and not found.getsockopt(of_socket, socket.SO_ACCEPTCONN):
            os.set_inheritable(descriptor, False)
            found.setblocking(False)
            return found
        found.close()
    logger.error(_NO_CONNECTION, uid)
    return None


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _read(descriptor: int) -> bytes:
    """Read the whole file from its start, and close it."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()
