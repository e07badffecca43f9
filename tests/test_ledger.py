"""The ledger of one worker: each request is counted once, by how it ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.contract.worker_state import Ledger
from tests.server_fixtures import GET, SLOW, STREAM, Client, Host, running_host, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of both servers that differ from the defaults."""
    return dict(getattr(request, "param", {}))


@pytest.fixture
async def host(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]
) -> AsyncIterator[Host]:
    async with running_host(tmp_path, tmp_path_factory.mktemp("run"), **settings) as host:
        yield host


async def test_drained_counts_requests_in_flight_at_the_cutover_that_were_completed(host: Host) -> None:
    """Not those answered before, begun after it on a busy connection, failed, or aborted by the client."""
    before, busy, failing, aborting = [await host.client() for _ in range(4)]
    await before.ask()
    busy.send(SLOW)
    failing.send(b"GET /raise-midway HTTP/1.1\r\nHost: x\r\n\r\n")
    aborting.send(SLOW)
    await until(lambda: host.blue.app.running == 3, "the requests")
    host.cut_over()
    busy.send(SLOW)
    aborting.abort()
    await until(lambda: host.blue.ledger.client_aborted == 1, "the abort")
    assert host.blue.ledger.drained == 0
    host.blue.app.proceed.set()
    host.green.app.proceed.set()
    assert [(await busy.reply()).slot for _ in range(2)] == ["blue", "green"]
    await until(lambda: host.blue.ledger.failed == 1, "the failure")
    assert (host.blue.ledger.completed, host.blue.ledger.drained) == (2, 1)
    assert host.green.ledger.drained == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"hello there\r\n\r\n",
        b"GET /a b c HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.7\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    ],
)
async def test_invalid_http_is_answered_and_counted(host: Host, garbage: bytes) -> None:
    """Data that is not valid HTTP gets a 400 and a close, and counts as one completed request."""
    client = await host.client()
    assert (await client.ask(garbage)).status == 400
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger(accepted=1, completed=1)


async def test_invalid_http_after_requests_is_counted_once(host: Host) -> None:
    """Two requests and invalid data on one connection are three completed requests."""
    client = await host.client()
    await client.ask()
    await client.ask()
    assert (await client.ask(b"\x00\x01\x02\r\n\r\n")).status == 400
    await client.rest()
    assert host.blue.ledger == Ledger(accepted=3, completed=3)


async def test_invalid_chunk_of_an_answered_upload_is_counted(host: Host) -> None:
    """An invalid chunk, after the response to its upload was sent, gets a 400 and counts as one request."""
    client = await host.client()
    await client.ask(b"POST /hello HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert (await client.ask(b"no length\r\n")).status == 400
    assert host.blue.ledger == Ledger(accepted=2, completed=2)


async def test_invalid_http_behind_a_request_in_flight_is_counted_once(host: Host) -> None:
    """Invalid data pipelined behind a request in flight is refused after its answer; both are counted once."""
    client = await host.client()
    client.send(SLOW)
    await until(lambda: host.blue.app.running, "the request")
    client.send(b"\x00\x01\x02\r\n\r\n")
    host.blue.app.proceed.set()
    assert [(await client.reply()).status for _ in range(2)] == [200, 400]
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger(accepted=2, completed=2)


async def test_disconnect_during_a_response_counts_as_client_aborted(host: Host) -> None:
    """A client that disconnects before its response is complete does not count as a failure of the server."""
    client = await host.client()
    client.send(STREAM)
    await client.first_part()
    client.abort()
    await until(lambda: not host.blue.connections, "the end of the connection")
    host.blue.app.proceed.set()
    await until(lambda: not host.blue.app.running, "the end of the application")
    assert host.blue.ledger == Ledger(accepted=1, client_aborted=1)


async def test_disconnect_during_the_head_counts_as_client_aborted(host: Host) -> None:
    """A request whose client disconnects before its head is complete is client-aborted."""
    client = await host.client()
    client.send(b"GET /he")
    await until(lambda: host.blue.ledger.accepted == 1, "the first byte")
    client.abort()
    await until(lambda: not host.blue.connections, "the end of the connection")
    assert host.blue.ledger == Ledger(accepted=1, client_aborted=1)


async def test_disconnect_counts_each_pipelined_request_once(host: Host) -> None:
    """Two pipelined requests of a client that disconnects are both client-aborted, also if the first ran to its end."""
    client = await host.client()
    client.send(b"GET /parts HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    await client.first_part()
    client.abort()
    host.blue.app.proceed.set()
    await until(lambda: not host.blue.connections and not host.blue.app.running, "the end")
    assert host.blue.ledger == Ledger(accepted=2, client_aborted=2)


async def test_exception_in_the_application_counts_as_failed(host: Host) -> None:
    """An application that raises answers with a 500, which counts as failed."""
    client = await host.client()
    assert (await client.ask(b"GET /raise HTTP/1.1\r\nHost: x\r\n\r\n")).status == 500
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger(accepted=1, failed=1)


async def test_interrupted_response_counts_as_failed(host: Host) -> None:
    """A response that the application breaks off counts as failed, not as client-aborted."""
    client = await host.client()
    client.send(b"GET /raise-midway HTTP/1.1\r\nHost: x\r\n\r\n")
    await client.first_part()
    host.blue.app.proceed.set()
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger(accepted=1, failed=1)


async def test_requests_pipelined_behind_a_failed_one_count_as_failed(host: Host) -> None:
    """Requests that were read and will not be answered, because the connection is closed, are failed."""
    client = await host.client()
    client.send(b"GET /raise HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    assert (await client.reply()).status == 500
    await client.rest()
    assert host.blue.ledger == Ledger(accepted=2, failed=2)


@pytest.mark.parametrize("how", ["deadline", "signal"])
@pytest.mark.parametrize("settings", [{"drain": 0}], indirect=True)
async def test_requests_cut_at_the_drain_deadline_are_counted(host: Host, how: str) -> None:
    """A request that the drain deadline or SIGQUIT ends counts as failed and cut."""
    client = await host.client()
    client.send(STREAM)
    await client.first_part()
    host.cut_over()
    await host.blue.leave(signal.SIGTERM if how == "deadline" else signal.SIGQUIT)
    assert b"last" not in await client.rest()
    assert host.blue.ledger == Ledger(accepted=1, failed=1, cut=1)


async def test_response_completed_during_the_cut_is_not_counted_again(host: Host) -> None:
    """An application that completes its response after its connection was cut changes no count."""
    client = await host.client()
    client.send(SLOW)
    await until(lambda: host.blue.app.running, "the request")
    connection = host.blue.connections[0]
    host.blue.app.proceed.set()
    connection.cut()
    await client.rest()
    await until(lambda: not host.blue.app.running, "the end of the application")
    assert host.blue.ledger == Ledger(accepted=1, failed=1, cut=1)


async def test_internal_requests_are_answered_with_the_gate_closed_and_counted_apart(host: Host) -> None:
    """A connection of the internal socket is never passed to another slot, and counts as `internal` alone."""
    reader, writer = await asyncio.open_unix_connection(str(host.runtime / "green/http.sock"))
    client = Client(reader, writer)
    host.clients.append(client)
    assert (await client.ask()).slot == "green"
    host.go_live("green")
    await until(lambda: host.green.server.is_serving, "the gate")
    host.go_live("blue")
    await until(lambda: not host.green.server.is_serving, "the gate")
    assert (await client.ask()).slot == "green"
    assert host.green.ledger == Ledger(internal=2)


async def test_internal_connections_are_closed_when_the_slot_leaves(host: Host) -> None:
    """A connection of the internal socket is for this slot, so it is closed and not passed on."""
    client = Client(*await asyncio.open_unix_connection(str(host.runtime / "green/http.sock")))
    host.clients.append(client)
    await client.ask()
    await host.green.leave()
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger()
    assert host.green.ledger == Ledger(internal=1)
