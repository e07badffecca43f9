"""Client connections between two servers on one listening socket: when they move, and that no byte is lost."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.contract.worker_state import Ledger
from service.handover.fd_passing import Outcome
from service.routing.canary import Side
from service.routing.ownership import MAX_AGE
from tests.server_fixtures import GET, PINNED, SLOW, STREAM, TIMEOUT, Client, Host, running_host, until

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


async def test_idle_connection_moves(host: Host) -> None:
    """An idle keep-alive connection is answered by the new slot, and the client sees no close."""
    client = await host.client()
    assert (await client.ask()).slot == "blue"
    host.go_live("green")
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask()).slot == "green"
    assert host.blue.ledger == Ledger(accepted=1, completed=1, handed_out=1)
    assert host.green.ledger == Ledger(accepted=1, completed=1, adopted=1)


async def test_connection_without_a_request_moves(host: Host) -> None:
    """A connection on which nothing was sent yet is idle: it moves, and green answers its first request."""
    client = await host.client()
    host.cut_over()
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask()).slot == "green"
    assert host.blue.ledger == Ledger(handed_out=1)


async def test_request_sent_before_the_move_is_read_on_adoption(host: Host) -> None:
    """The new owner reads a request that waits in the kernel at once, not in the next iteration of its event loop."""
    client = await host.client()
    host.cut_over()
    client.send(GET)
    while not host.green.connections:  # noqa: ASYNC110  (one iteration of the event loop at a time)
        await asyncio.sleep(0)
    assert host.green.ledger.accepted == 1
    assert (await client.reply()).slot == "green"


async def test_connection_that_is_passed_on_as_it_arrives_keeps_its_bytes(host: Host) -> None:
    """The server that accepts a connection after it lost `live` reads nothing of it. (On uvloop it does.)"""
    for number in range(10):
        live, idle = host.slots if number % 2 else host.slots[::-1]
        await until(lambda idle=idle: idle.server.is_serving, "the gate")  # type: ignore[misc]
        host.go_live(live.state.slot)
        time.sleep(2 * MAX_AGE)  # noqa: ASYNC251  (no server follows the rename meanwhile)
        connection = socket.create_connection(host.listener.getsockname())
        connection.send(GET)
        client = Client(*await asyncio.open_connection(sock=connection))
        host.clients.append(client)
        before = idle.ledger.accepted
        assert (await client.reply()).slot == live.state.slot
        assert idle.ledger.accepted == before


async def test_data_received_while_a_request_waits_to_be_passed_on_is_passed_with_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After TRY_AGAIN the next attempt is made by the timer, not for each piece of data that is still delivered."""
    canary = {"slot": "green", "weight": 0}
    (host.runtime / "canary").write_text(json.dumps(canary))
    client = await host.client()
    [connection] = host.blue.connections
    attempts = []

    def pass_on(_client: socket.socket, _side: Side, unread: bytes, _came: object) -> Outcome:
        attempts.append(unread)
        return Outcome.TRY_AGAIN if len(attempts) == 1 else Outcome.NO_RECEIVER

    monkeypatch.setattr(host.blue.server.sender, "pass_on", pass_on)
    connection.data_received(PINNED)
    connection.data_received(GET)
    assert [(await client.reply()).slot for _ in range(2)] == ["blue"] * 2
    await asyncio.sleep(0.03)  # time for more attempts
    assert attempts == [PINNED, PINNED + GET]


async def test_connection_follows_every_cutover(host: Host) -> None:
    """One connection follows twenty cutovers, and the live slot answers it after each."""
    client = await host.client()
    for number in range(20):
        live, idle = host.slots if number % 2 else host.slots[::-1]
        host.go_live(live.state.slot)
        await until(partial(live.holds, 1), "the move")
        idle.tick()
        assert (await client.ask()).slot == live.state.slot
    assert host.blue.ledger.accepted == host.green.ledger.accepted == 10


async def test_busy_connection_moves_after_its_response(host: Host) -> None:
    """The slot in which a request began answers it; the connection moves after the response."""
    client = await host.client()
    client.send(STREAM)
    await client.first_part()
    host.cut_over()
    assert host.blue.ledger.handed_out == 0
    assert host.blue.connections[0].in_flight == 1
    host.blue.app.proceed.set()
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert await client.reader.readuntil(b"0\r\n\r\n") == b"4\r\nlast\r\n0\r\n\r\n"
    assert (await client.ask()).slot == "green"


@pytest.mark.parametrize("is_canary", [True, False])
@pytest.mark.parametrize("sent", [1, 3, 20, len(GET) - 1])
async def test_incomplete_head_moves_with_its_connection(host: Host, sent: int, is_canary: bool) -> None:
    """A client that is slow to send a head holds no cutover: what has come of it is passed on, and counted there."""
    if is_canary:
        (host.runtime / "canary").write_text(json.dumps({"slot": "green", "weight": 0}))
    client = await host.client()
    client.send(GET[:sent])
    await until(lambda: host.blue.ledger.accepted == 1, "the first byte")
    (host.runtime / "canary").unlink(missing_ok=True)
    host.cut_over()
    assert host.blue.ledger == Ledger(handed_out=1)
    await until(lambda: host.green.ledger.accepted == 1, "the move")
    assert (await client.ask(GET[sent:])).slot == "green"
    assert host.green.ledger == Ledger(accepted=1, completed=1, adopted=1)


async def test_empty_lines_between_requests_do_not_hold_a_connection(host: Host) -> None:
    """An empty line after a request does not begin another: the connection moves, and the next request is complete."""
    client = await host.client()
    assert (await client.ask(GET + b"\r\n")).slot == "blue"
    host.cut_over()
    assert (await client.ask()).slot == "green"


async def test_pipelined_requests_are_all_answered_in_order(host: Host) -> None:
    """Pipelined requests are answered in order; those that follow the one in flight at the cutover move with it."""
    client = await host.client()
    client.send(SLOW + GET + GET[:10])
    await until(lambda: host.blue.ledger.accepted == 1, "the request")
    host.cut_over()
    host.blue.app.proceed.set()
    replies = [await client.reply(), await client.reply(), await client.ask(GET[10:])]
    assert [reply.body for reply in replies] == [b"/slow", b"/hello", b"/hello"]
    assert [reply.slot for reply in replies] == ["blue", "green", "green"]
    assert host.blue.ledger == Ledger(accepted=1, completed=1, drained=1, handed_out=1)


async def test_long_pipeline_crosses_a_cutover(host: Host) -> None:
    """Of 200 pipelined requests around a cutover each is answered once, the first by blue, the last by green."""
    client = await host.client()
    for _ in range(4):
        client.send(GET * 50)
        await asyncio.sleep(0)
    await client.reply()
    host.go_live("green")
    slots = [(await client.reply()).slot for _ in range(199)]
    slots += [(await client.ask()).slot for _ in range(3)]
    assert slots == sorted(slots)  # blue, then green
    assert slots[-1] == "green"


async def test_upload_answered_early_does_not_move_before_its_last_byte(host: Host) -> None:
    """After a response that was sent before the end of its upload, the connection stays until the last byte."""
    client = await host.client()
    head = b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
    assert (await client.ask(head + b"12345")).slot == "blue"
    host.cut_over()
    assert host.blue.ledger.handed_out == 0
    client.send(b"67890")
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask()).slot == "green"
    assert host.blue.ledger == Ledger(accepted=1, completed=1, handed_out=1)


async def test_request_behind_an_upload_answered_early_is_answered(host: Host) -> None:
    """A request that was read together with the end of an upload moves with the connection."""
    client = await host.client()
    await client.ask(b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
    host.cut_over()
    assert (await client.ask(b"67890" + GET)).slot == "green"


async def test_upload_in_progress_does_not_move(host: Host) -> None:
    """Every byte of a chunked upload that began before the cutover reaches the slot in which it began."""
    client = await host.client()
    client.send(b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await until(lambda: host.blue.app.running, "the request")
    host.cut_over()
    reply = await client.ask(b"3\r\ndef\r\n0\r\n\r\n")
    assert (reply.slot, reply.body) == ("blue", b"abcdef")
    assert (await client.ask()).slot == "green"


async def test_connection_with_unsent_bytes_does_not_move(host: Host) -> None:
    """While a byte of a response is in the write buffer, the connection stays."""
    client = await host.client()
    await client.ask()
    connection = host.blue.connections[0]
    connection.transport.write(b"x" * (32 << 20))  # more than the kernel takes while the client does not read
    assert connection.transport.get_write_buffer_size() > 0
    host.cut_over()
    assert host.blue.ledger.handed_out == 0
    async with asyncio.timeout(TIMEOUT):
        await client.reader.readexactly(32 << 20)
    await until(lambda: host.green.ledger.adopted == 1, "the move")


@pytest.mark.parametrize(
    "request_", [b"GET /hello HTTP/1.0\r\n\r\n", b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
)
async def test_connection_without_keep_alive_is_closed(host: Host, request_: bytes) -> None:
    """Requests by HTTP/1.0 or with Connection: close are answered, closed and counted; no connection moves."""
    client = await host.client()
    assert (await client.ask(request_)).status == 200
    assert await client.rest() == b""
    host.cut_over()
    assert host.blue.ledger == Ledger(accepted=1, completed=1)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"POST /hello HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_request_for_an_upgrade_is_answered_without_it(host: Host, request_: bytes) -> None:
    """A client that offers HTTP/2 (curl --http2, Java) is answered in HTTP/1.1, and its connection moves."""
    client = await host.client()
    assert (await client.ask(request_)).slot == "blue"
    assert (await client.ask()).slot == "blue"
    host.cut_over()
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask(request_)).slot == "green"
    assert host.blue.ledger == Ledger(accepted=2, completed=2, handed_out=1)


async def test_connection_stays_while_the_owner_has_no_socket(host: Host) -> None:
    """While the live slot has no handoff.sock, the old slot goes on answering; it passes on once there is one."""
    aside = host.runtime / "aside.sock"
    (host.runtime / "green/handoff.sock").rename(aside)
    client = await host.client()
    host.cut_over()
    assert host.blue.state.gate == "closed"
    assert [(await client.ask()).slot for _ in range(3)] == ["blue"] * 3
    aside.rename(host.runtime / "green/handoff.sock")
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask()).slot == "green"


async def test_connections_wait_in_the_backlog(host: Host) -> None:
    """With both gates closed a new client is not refused: it waits, and the next slot whose gate opens answers it."""
    (host.root / "live").unlink()
    for slot in host.slots:
        slot.tick()
    client = await host.client(accepted=False)
    client.send(GET)
    assert not any(slot.connections for slot in host.slots)
    host.go_live("green")
    assert (await client.reply()).slot == "green"


async def test_leaving_server_passes_its_connections_on(host: Host) -> None:
    """A server that got SIGTERM passes idle connections on at once, and busy ones after their responses."""
    idle, busy = await host.client(), await host.client()
    busy.send(SLOW)
    await until(lambda: host.blue.app.running, "the request")
    host.cut_over()
    leaving = asyncio.create_task(host.blue.leave())
    assert (await idle.ask()).slot == "green"
    assert not leaving.done()
    host.blue.app.proceed.set()
    assert (await busy.reply()).slot == "blue"
    await leaving
    assert host.blue.state.phase == "gone"
    assert (await busy.ask()).slot == "green"
    assert host.blue.ledger == Ledger(accepted=1, completed=1, drained=1, handed_out=2)


@pytest.mark.parametrize("settings", [{"handoff": False}], indirect=True)
async def test_without_handoff_idle_connections_are_closed(host: Host) -> None:
    """With handoff switched off a cutover closes idle connections, so that the tests of zero loss can fail."""
    idle, busy = await host.client(), await host.client()
    await idle.ask()
    busy.send(SLOW)
    await until(lambda: host.blue.app.running, "the request")
    host.cut_over()
    assert await idle.rest() == b""
    host.blue.app.proceed.set()
    assert (await busy.reply()).slot == "blue"
    assert await busy.rest() == b""
    assert host.blue.ledger == Ledger(accepted=2, completed=2, drained=1)
    assert host.green.ledger == Ledger()


async def test_many_clients_cross_many_cutovers(host: Host) -> None:
    """Every request of twenty clients that never pause is answered during ten cutovers, and counted once."""
    sent = 0
    stop = asyncio.Event()

    async def keep_asking(client: Client) -> None:
        nonlocal sent
        while not stop.is_set():
            sent += 1
            assert (await client.ask()).status == 200

    clients = [await host.client() for _ in range(20)]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(keep_asking(client))
        for number in range(10):
            live = host.slots[1 - number % 2]
            host.go_live(live.state.slot)
            await until(partial(live.holds, len(clients)), "the moves")
        stop.set()
    assert host.blue.ledger.completed + host.green.ledger.completed == sent
    assert host.blue.ledger.handed_out + host.green.ledger.handed_out == 200


async def test_leaving_server_waits_for_an_accepted_sender(host: Host) -> None:
    """A server that leaves waits for a sender that it accepted and that has not sent yet, and the client is served."""
    host.go_live("green")
    host.blue.tick()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as sender:
        client = Client(*await asyncio.open_connection(*server.getsockname()))
        host.clients.append(client)
        accepted, _ = server.accept()
        with accepted:
            sender.connect(str(host.runtime / "blue/handoff.sock"))
            for _ in range(3):  # iterations of the event loop, in which blue accepts the sender
                await asyncio.sleep(0)
            leaving = asyncio.create_task(host.blue.leave())
            for _ in range(3):
                await asyncio.sleep(0.02)
            left_at_once = leaving.done()
            socket.send_fds(sender, [b"c"], [accepted.fileno()])
            host.green.ledger.handed_out += 1  # the test sends in green's place
        await leaving
        assert not left_at_once
        assert (await client.ask()).slot == "green"
