"""The client connections of one worker: how many there may be, in all and from one address or IPv6 network."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from service.contract.network import network_of
from service.handover.fd_passing import Outcome
from service.routing.canary import Side
from service.settings import Settings

__all__ = ["ClientConnection", "Clients", "MovableConnection", "address_of"]

_RESERVE = 256  # descriptors for the worker's own files, for passing connections on, and for fetching images
_CLOSED_AT_ONCE = 64  # connections that make room, so that the search for them is not repeated for every newcomer


class ClientConnection(Protocol):
    """A connection of a client, with a transport or as a bare socket."""

    address: str
    idle_since: float

    @property
    def in_flight(self) -> int:
        """The number of requests that were begun and have not ended."""

    @property
    def waits_for_client(self) -> bool:
        """Whether no whole request is in flight."""

    def give_up(self) -> None:
        """Close the connection; a request that is not whole gets a 408."""


class MovableConnection(Protocol):
    """A connection, or a bundle of them, that may be passed to another process."""

    public: bool
    """Whether it is a client's, not one of the slot's internal socket."""
    side: Side
    """The side that answers its next request."""

    def move(self) -> Outcome | None:
        """Pass it to its owner; returns None, and does nothing, unless it is between requests."""

    def shutdown(self) -> None:
        """Close it if it is idle; the last response in flight gets "Connection: close"."""

    def cut(self) -> None:
        """Abort it with its requests unanswered."""


class Clients:
    """A set of connections, which admits more while there is room.

    When there is none, the address with the most connections makes room: its connections that wait for their clients
    are closed, those first that were idle longest. So no address keeps the others out. Connections that were handed
    over are counted, and never refused.
    """

    def __init__(self, settings: Settings) -> None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(settings.max_connections, max(descriptors - _RESERVE, descriptors // 2))
        _grow_table(min(self._most + _RESERVE, descriptors))
        self._most_of_one = min(settings.max_connections_per_address, self._most)
        self._all: set[ClientConnection] = set()
        self._counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[ClientConnection]:
        return iter(self._all)

    def __contains__(self, connection: ClientConnection) -> bool:
        return connection in self._all

    def __len__(self) -> int:
        return len(self._all)

    def expect(self, address: str) -> None:
        """Count a connection that was accepted; it is added, and removed, in later iterations of the event loop."""
        self._counts[network_of(address)] += 1

    def add(self, connection: ClientConnection) -> None:
        """Add a connection."""
        self._all.add(connection)

    def remove(self, connection: ClientConnection) -> None:
        """Remove a connection that has ended."""
        self._all.remove(connection)
        network = network_of(connection.address)
        self._counts[network] -= 1
        if not self._counts[network]:
            del self._counts[network]

    def admits(self, address: str) -> bool:
        """Return whether another connection from the address is admitted."""
        network = network_of(address)
        if self._counts[network] >= self._most_of_one:
            return False
        return self._counts.total() < self._most or self._makes_room(network)

    def _makes_room(self, network: str) -> bool:
        greediest, count = self._counts.most_common(1)[0]
        if count <= self._counts[network] + 1:
            return False
        waiting = [found for found in self if network_of(found.address) == greediest and found.waits_for_client]
        waiting.sort(key=lambda connection: (connection.in_flight, connection.idle_since))
        for connection in waiting[:_CLOSED_AT_ONCE]:
            connection.give_up()
        return bool(waiting)


def _grow_table(descriptors: int) -> None:
    """Let the kernel make its table of this process's descriptors as large as it may become.

    It would grow by doubling when thousands of connections come at once, and a process with threads waits for each time
    (synchronize_rcu): 100 ms for 10,000 of them.
    """
    with suppress(OSError), Path(os.devnull).open("rb") as some:
        os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, descriptors - 1))


def address_of(client: socket.socket) -> str:
    """Return the address of a client without its port; empty for a Unix socket, and for a client that has gone."""
    try:
        name = client.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""
