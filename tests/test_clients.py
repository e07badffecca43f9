"""How many connections clients may have: one address cannot keep the others out, and descriptors are held back."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.contract.worker_state import Ledger
from tests.server_fixtures import SLOW, Client, Host, running_host, until

pytestmark = pytest.mark.anyio

SMALL = {"max_connections": 10, "max_connections_per_address": 8}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def host(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Host]:
    async with running_host(tmp_path, tmp_path_factory.mktemp("run"), **getattr(request, "param", SMALL)) as host:
        yield host


async def connect(host: Host, address: str) -> Client:
    """Connect from an address of the loopback network, and wait until the connection is accepted or refused."""
    end = socket.socket()
    end.bind((address, 0))
    end.setblocking(False)
    await asyncio.get_running_loop().sock_connect(end, host.listener.getsockname())
    client = Client(*await asyncio.open_connection(sock=end))
    host.clients.append(client)
    for _ in range(5):
        await asyncio.sleep(0.005)
    return client


async def test_an_address_has_no_more_than_its_limit(host: Host) -> None:
    """The connections beyond it get a 503 and a close; the others, and other addresses, go on."""
    own = [await connect(host, "127.0.0.2") for _ in range(8)]
    refused = await connect(host, "127.0.0.2")
    assert (await refused.reply()).status == 503
    assert await refused.rest() == b""
    for client in [*own, await connect(host, "127.0.0.3")]:
        assert (await client.ask()).status == 200
    own[0].abort()
    await until(lambda: len(host.blue.connections) == 8, "the end of the connection")
    assert (await (await connect(host, "127.0.0.2")).ask()).status == 200


@pytest.mark.parametrize("holding", [b"", b"GET /he", b"POST /x HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"])
async def test_the_address_with_the_most_connections_makes_room(host: Host, holding: bytes) -> None:
    """Where they wait for its clients: those that were idle longest are closed, and no request in flight is."""
    greedy = [await connect(host, "127.0.0.2") for _ in range(8)]
    busy = greedy.pop(0)
    busy.send(SLOW)
    for client in greedy:
        client.send(holding)
    modest = [await connect(host, f"127.0.0.{number}") for number in range(3, 9)]
    for client in modest:
        assert (await client.ask()).status == 200
    host.blue.app.proceed.set()
    assert (await busy.reply()).status == 200
    assert host.blue.ledger.failed == 0


async def test_newcomers_are_refused_where_nobody_has_more(host: Host) -> None:
    """Nobody is disconnected in favour of an address that has as many connections itself."""
    clients = [await connect(host, f"127.0.0.{2 + number % 5}") for number in range(10)]
    assert (await (await connect(host, "127.0.0.2")).reply()).status == 503
    for client in clients:
        assert (await client.ask()).status == 200


async def test_connections_that_are_handed_over_are_never_refused(host: Host) -> None:
    """They count: a newcomer is refused until some have ended."""
    own = [await connect(host, "127.0.0.2") for _ in range(8)]
    host.cut_over()
    await until(lambda: len(host.green.connections) == 8, "the move")
    assert (await (await connect(host, "127.0.0.2")).reply()).status == 503
    assert [(await client.ask()).slot for client in own] == ["green"] * 8
    assert host.green.ledger == Ledger(accepted=8, completed=8, adopted=8)


def test_the_kernel_has_room_for_all_connections_at_once() -> None:
    """Its table of a process's descriptors would grow step by step, and the process would wait for each of them."""
    script = (
        "from pathlib import Path\n"
        "from service.handover.clients import Clients\n"
        "from service.settings import Settings\n"
        "def size() -> int:\n"
        "    return int(Path('/proc/self/status').read_text().partition('FDSize:')[2].split()[0])\n"
        "before = size()\n"
        "Clients(Settings(slot='blue', max_connections=700))\n"
        "print(before, size())"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    before, after = map(int, found.stdout.split())
    assert before < 700 < after
