"""Client connections without a request, as bare sockets: they take little memory, and are passed on together.

With a transport and a protocol for each, that takes ten times as long (`make bench ARGS='--only growth'`).
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterator
from typing import Protocol

from service.contract.route import Route
from service.contract.worker_state import Ledger
from service.handover.clients import Clients
from service.handover.fd_passing import BUNDLE, Outcome
from service.handover.sender import ConnectionSender
from service.routing.canary import Side

__all__ = ["REST_AFTER", "Bundle", "IdleConnection", "IdleConnections", "IdleServer", "peek"]

REST_AFTER = 1.0
"""Seconds after which an idle connection is kept as a bare socket; most clients with more to ask do so before."""

_LOOK_EVERY = 1.0  # seconds
_ENDED_AT_ONCE = 256  # in 3 ms; those of a switch are over together
_BURST = 64  # connections whose requests are noticed at once, so that what is served already goes on


class IdleServer(Protocol):
    """The server, as its idle connections use it."""

    clients: Clients
    sender: ConnectionSender

    @property
    def ledger(self) -> Ledger:
        """The counts of this worker."""

    def resume(self, connection: IdleConnection) -> None:
        """Read the request that has begun; `connection` is not among the idle ones any more."""


class IdleConnection:
    """A client's connection on which no byte of the next request was read."""

    __slots__ = ("_came", "_idle", "address", "client", "idle_since", "side")

    in_flight = 0
    waits_for_client = True

    def __init__(
        self,
        idle: IdleConnections,
        client: socket.socket,
        address: str,
        side: Side,
        came: Route | bytes | None,
        idle_since: float,
    ) -> None:
        self._idle = idle
        self.client = client
        self.address = address
        self.side: Side = side
        self._came = came
        self.idle_since = idle_since

    @property
    def route(self) -> Route | None:
        """How it came here; its note is read when it goes on, because thousands of them arrive at once."""
        if isinstance(self._came, bytes):
            self._came = Route.parse(self._came)
        return self._came

    def give_up(self) -> None:
        """Close the connection."""
        self._idle.remove(self)
        self.client.close()


class Bundle:
    """Idle connections of one side, which are passed on together."""

    public = True

    def __init__(self, server: IdleServer, side: Side, connections: list[IdleConnection]) -> None:
        self.side: Side = side
        self._server = server
        self._connections = connections

    def move(self) -> Outcome:
        """Pass them to their owner. What clients send meanwhile stays in the kernel, and goes with their connections.

        If that does not work for all at once, each goes by itself, until one cannot.
        """
        sender = self._server.sender
        outcome = sender.pass_on_bundle([(one.client, one.route) for one in self._connections], self.side)
        if outcome is Outcome.SENT:
            self._end(len(self._connections))
        elif outcome is not Outcome.TRY_AGAIN:
            for one in list(self._connections):
                outcome = sender.pass_on(one.client, self.side, came=one.route)
                if outcome is not Outcome.SENT:
                    break
                self._end(1)
        return outcome

    def _end(self, number: int) -> None:
        """Close this process's copies of those that were sent."""
        self._server.ledger.handed_out += number
        for connection in self._connections[:number]:
            connection.give_up()
        del self._connections[:number]

    def shutdown(self) -> None:
        """Close them."""
        for connection in self._connections:
            connection.give_up()

    cut = shutdown


class IdleConnections:
    """A set of connections that are watched by one epoll. The first byte, and the end of a connection, wake it.

    Each is closed after `keep_alive` seconds without a request.
    """

    def __init__(self, server: IdleServer, keep_alive: float) -> None:
        self.server = server
        self._keep_alive = keep_alive
        self._all: dict[int, IdleConnection] = {}
        self._epoll = select.epoll()
        self._next_look = 0.0  # for connections that were idle for too long, in seconds of the event loop

    def __iter__(self) -> Iterator[IdleConnection]:
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def bundles(self) -> Iterator[Bundle]:
        """Yield all of them in bundles, each to be moved before the next one is taken."""
        begun: dict[Side, list[IdleConnection]] = {}
        for connection in self:
            if self._all.get(connection.client.fileno()) is not connection:
                continue  # it has ended, or was woken, since this iterator was made
            bundle = begun.setdefault(connection.side, [])
            bundle.append(connection)
            if len(bundle) == BUNDLE:
                yield Bundle(self.server, connection.side, bundle)
                begun[connection.side] = []
        for side, bundle in begun.items():
            if bundle:
                yield Bundle(self.server, side, bundle)

    def start(self) -> None:
        """Begin to watch."""
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    def close(self) -> None:
        """Watch no more; there are none left."""
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()

    def add(
        self, client: socket.socket, address: str, side: Side, came: Route | bytes | None, idle_since: float
    ) -> None:
        """Keep a connection, which is idle since that time of the event loop. `came`: its route, or the note of it."""
        connection = IdleConnection(self, client, address, side, came, idle_since)
        self._all[client.fileno()] = connection
        self._epoll.register(client.fileno(), select.EPOLLIN)
        self.server.clients.expect(address)
        self.server.clients.add(connection)

    def remove(self, connection: IdleConnection) -> None:
        """Keep it no more; its socket stays open."""
        descriptor = connection.client.fileno()
        self._epoll.unregister(descriptor)  # before it is closed: another process may have the connection open
        del self._all[descriptor]
        self.server.clients.remove(connection)

    def pass_time(self) -> None:
        """Close the connections that have been idle for too long."""
        now = asyncio.get_running_loop().time()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        over = (one for one in self if now - one.idle_since >= self._keep_alive)
        for number, connection in enumerate(over, 1):
            if not self._wake(connection):
                connection.give_up()
            if number == _ENDED_AT_ONCE:
                self._next_look = now
                return

    def _look(self) -> None:
        for descriptor, _ in self._epoll.poll(0, _BURST):
            if connection := self._all.get(descriptor):
                self._wake(connection)

    def _wake(self, connection: IdleConnection) -> bool:
        """Have the request read that has begun; returns False if there is none, and the client has not gone."""
        begun = peek(connection.client)
        if begun is None:
            return False
        if not begun:
            connection.give_up()
        else:
            self.remove(connection)
            self.server.resume(connection)
        return True


def peek(client: socket.socket) -> bytes | None:
    """Return the first byte that waits to be read; None if there is none yet, empty if the connection has ended."""
    try:
        return client.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except OSError:  # its client has reset it
        return b""
