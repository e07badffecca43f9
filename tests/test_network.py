"""Who has one address of an IPv6 network has all of them, and counts as one client wherever clients are counted."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Address
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.network import network_of
from service.handover.clients import Clients
from service.handover.turns import Turns
from service.settings import Settings

OWN = [f"2001:db8:1:2::{number:x}" for number in range(1, 20)]
OTHERS = ("2001:db8:1:3::1", "192.0.2.1", "::ffff:192.0.2.2")


@given(address=st.integers(0, 2**128 - 1).map(IPv6Address), rest=st.integers(0, 2**64 - 1))
def test_the_last_64_bits_do_not_count(address: IPv6Address, rest: int) -> None:
    """But the first do, and an address that is mapped from IPv4 is that one."""
    neighbour = IPv6Address(int(address) >> 64 << 64 | rest)
    other = IPv6Address(int(address) ^ 1 << 64)
    if address.ipv4_mapped:
        assert network_of(str(address)) == str(address.ipv4_mapped)
    elif not neighbour.ipv4_mapped:
        assert network_of(str(address)) == network_of(str(neighbour)) != network_of(str(other))


@given(st.text())
def test_any_text_is_a_client(text: str) -> None:
    """Such as the name of a test's client, or none."""
    assert isinstance(network_of(text), str)


def test_a_network_has_the_connections_of_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the room of one: when all are in use, it makes room for the others."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (4096, 4096))
    clients = Clients(Settings(slot="blue", max_connections=12, max_connections_per_address=10))
    connections = []
    for address in OWN:
        if clients.admits(address):
            clients.expect(address)
            connections.append(Mock(address=address, idle_since=0.0, in_flight=0, waits_for_client=True))
            clients.add(connections[-1])
    assert len(clients) == 10
    for address in OTHERS:
        assert clients.admits(address)
        clients.expect(address)
    assert all(connection.give_up.called for connection in connections)


def test_a_network_has_the_turns_of_one_client() -> None:
    """A slice of work of another client comes after one of the network's, not after all."""
    done = []

    async def work() -> None:
        turns = Turns()
        for address in (*OWN, *OTHERS):
            turns.add(address, lambda address=address: done.append(address))  # type: ignore[misc]
        for _ in range(2 * len(OWN)):
            await asyncio.sleep(0)

    asyncio.run(work())
    assert done[:4] == [OWN[0], *OTHERS]
