"""Accepts connections from listening sockets that several processes share."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["Acceptor", "Arrivals", "require"]

_BURST = 64  # connections accepted at once, so that the other workers get their share
_MOST = 0.002  # seconds for a burst; each may be a message with many connections
_PAUSE = 1.0  # seconds without accepting after the process ran out of descriptors

logger = logging.getLogger("gunicorn.error")


class Acceptor:
    """Calls `admit` with each connection. Each needs `descriptors` in all; while there are fewer, none is accepted.

    What is not accepted waits in the backlog, in the kernel.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], admit: Callable[[socket.socket], None], *, descriptors: int = 1
    ) -> None:
        self._listeners = listeners
        self._admit = admit
        self._descriptors = descriptors
        self._is_started = self._is_watching = False
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept."""
        self._is_started = True
        if self._pause is None:
            self._watch(True)

    def stop(self) -> None:
        """Accept no more, unless `accept` is called."""
        self._is_started = False
        self._watch(False)

    def accept(self, listener: socket.socket) -> int:
        """Accept what waits, up to a burst; returns how many there were."""
        end = time.monotonic() + _MOST
        for accepted in range(_BURST):
            if accepted and (time.monotonic() >= end or self._pause):
                return accepted
            try:
                require(self._descriptors, listener)
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return accepted
            except OSError as error:
                logger.error("cannot accept: %s; next try in %s s", error, _PAUSE)  # noqa: TRY400
                self.pause()
                return 0
            connection.setblocking(False)
            self._admit(connection)
        return _BURST

    def pause(self) -> None:
        """Accept nothing for a while: a descriptor is missing."""
        self._watch(False)
        self._pause = self._pause or asyncio.get_running_loop().call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._watch(self._is_started)

    def _watch(self, watch: bool) -> None:
        if watch == self._is_watching:
            return
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            if watch:
                loop.add_reader(listener.fileno(), self.accept, listener)
            else:
                loop.remove_reader(listener.fileno())
        self._is_watching = watch


class Arrivals:
    """Accepted connections whose transports are being set up. It is true while there are any."""

    def __init__(self) -> None:
        self._pending: set[Coroutine[Any, Any, object]] = set()

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, client: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> bool:
        """Set up the transport of a connection; returns False, and closes it, if its client has disconnected."""
        arrival = asyncio.get_running_loop().connect_accepted_socket(protocol, client)
        try:
            # The first step of the coroutine creates the transport. A task would run it in the event loop's next
            # iteration, which may be milliseconds later.
            arrived: asyncio.Future[None] = arrival.send(None)
        except OSError as error:
            logger.info("a client disconnected before its connection was set up: %s", error)
            client.close()
            return False
        self._pending.add(arrival)
        arrived.add_done_callback(lambda _: self._end(arrival))
        return True

    def _end(self, arrival: Coroutine[Any, Any, object]) -> None:
        self._pending.discard(arrival)  # before the last step, which may raise: a server that ends waits for the others
        with suppress(StopIteration):
            arrival.send(None)


def require(count: int, open_socket: socket.socket) -> None:
    """Raise OSError unless the process can open that many descriptors more; accept needs one, and looks itself."""
    opened: list[int] = []
    try:
        for _ in range(count if count > 1 else 0):
            opened.append(os.dup(open_socket.fileno()))  # noqa: PERF401  (those before one that fails are closed)
    finally:
        for descriptor in opened:
            os.close(descriptor)
