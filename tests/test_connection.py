"""Client connections between two servers on one listening socket: what moves, when, and how it is counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from uvicorn.config import Config

from service.contract.worker_state import Ledger, WorkerState, WorkerStateFile
from service.handover.connection import Connection
from service.handover.fd_passing import Outcome
from service.handover.server import SlotServer
from service.handover.sockets import SlotSockets
from service.routing.canary import Side
from service.routing.ownership import Gate
from service.settings import Settings

pytestmark = pytest.mark.anyio

Message = MutableMapping[str, Any]
PATIENCE = 5.0
GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
PINNED = b"GET /hello HTTP/1.1\r\nHost: x\r\nX-GLM-Slot: candidate\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class App:
    """Answers at once, slowly, in a stream, too early, or not at all, as the path says."""

    def __init__(self, slot: str) -> None:
        self.slot = slot
        self.proceed = asyncio.Event()
        self.running = 0

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        self.running += 1
        try:
            await self._answer(scope["path"], receive, send)
        finally:
            self.running -= 1

    async def _answer(
        self, path: str, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if path == "/raise":
            raise RuntimeError("on purpose")
        start: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x-slot", self.slot.encode())]}
        if path in {"/stream", "/parts", "/raise-midway"}:
            await send(start)
            await send({"type": "http.response.body", "body": b"first ", "more_body": True})
            await self.proceed.wait()
            if path == "/raise-midway":
                raise RuntimeError("on purpose")
            for _ in range(5 if path == "/parts" else 0):
                await send({"type": "http.response.body", "body": b"more ", "more_body": True})
                await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b"last"})
            return
        body = path.encode()
        if path == "/slow":
            await self.proceed.wait()
        elif path == "/upload":
            body, more = b"", True
            while more:
                part = await receive()
                body, more = body + part.get("body", b""), part.get("more_body", False)
        start["headers"] = [*start["headers"], (b"content-length", str(len(body)).encode())]
        await send(start)
        await send({"type": "http.response.body", "body": body})


@dataclass
class Reply:
    """A response as the client read it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def slot(self) -> str:
        return self.headers["x-slot"]


class Client:
    """A client that says exactly what it is told to say, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> Reply:
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            if headers.get("transfer-encoding") == "chunked":
                body = b""
                while length := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += (await self.reader.readexactly(length + 2))[:-2]
                await self.reader.readexactly(2)
            else:
                body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return Reply(int(status.split()[1]), headers, body)

    async def ask(self, request: bytes = GET) -> Reply:
        self.send(request)
        return await self.reply()

    async def first_part(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.reader.readuntil(b"first \r\n")

    async def rest(self) -> bytes:
        """Everything until the other side closes; a reset is an end too."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
            return b""

    def abort(self) -> None:
        """Leave with a reset, as a killed client does."""
        client = self.writer.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Slot:
    """One server with its doors, its ledger and its application."""

    def __init__(self, name: str, root: Path, runtime: Path, listener: socket.socket, settings: dict[str, Any]) -> None:
        directory = runtime / name / "1"
        directory.mkdir(parents=True)
        self.app = App(name)
        self.sockets = SlotSockets.bind(runtime / name, directory)
        self.state = WorkerState.of_this_process(slot=name, generation=1, version="1.0.0")
        self.state.phase = "ready"
        config = Config(
            self.app, http=Connection, loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False
        )
        config.load()
        self.server = SlotServer(
            config,
            Settings(root=root, runtime=runtime, slot=name, **settings),
            Gate(root, runtime, self.sockets.handoff_inode),
            WorkerStateFile(directory / "1.json", self.state),
            public=[listener],
            internal=self.sockets.http,
            handoff=self.sockets.handoff,
            has_siblings=lambda: False,
        )
        self.task = asyncio.create_task(self.server._serve([]))

    @property
    def ledger(self) -> Ledger:
        return self.state.ledger

    @property
    def connections(self) -> list[Connection]:
        every = self.server.server_state.connections
        return [one for one in every if isinstance(one, Connection) and one.public]

    def holds(self, many: int) -> bool:
        return self.server.is_serving and len(self.connections) == many

    def publish(self) -> None:
        self.sockets.publish("http.sock")
        self.sockets.publish("handoff.sock")

    def look(self) -> None:
        """What the server does every tick, now."""
        self.server.follow()

    async def leave(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.server.handle_exit(number, None)
        async with asyncio.timeout(PATIENCE):
            await self.task


class Host:
    """Blue and green on one listening socket; blue is live."""

    def __init__(self, root: Path, runtime: Path, settings: dict[str, Any]) -> None:
        self.root = root
        self.runtime = runtime
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.blue = Slot("blue", root, runtime, self.listener, settings)
        self.green = Slot("green", root, runtime, self.listener, settings)
        self.clients: list[Client] = []

    @property
    def slots(self) -> tuple[Slot, Slot]:
        return self.blue, self.green

    def go_live(self, slot: str) -> None:
        (self.root / "next").symlink_to(slot)
        (self.root / "next").rename(self.root / "live")

    def switch(self) -> None:
        """The cutover to green, and a look of blue's: whatever may move now has moved when this returns."""
        self.go_live("green")
        self.blue.look()
        self.blue.look()

    async def client(self, *, known: bool = True) -> Client:
        """Connect, and wait until blue or green holds the connection."""
        held = sum(len(slot.connections) for slot in self.slots)
        client = Client(*await asyncio.open_connection(*self.listener.getsockname()))
        self.clients.append(client)
        if known:
            await until(lambda: sum(len(slot.connections) for slot in self.slots) > held, "the connection")
        return client

    async def close(self) -> None:
        for client in self.clients:
            client.writer.close()
            with contextlib.suppress(ConnectionError):
                await client.writer.wait_closed()
        for slot in self.slots:
            slot.app.proceed.set()
            await slot.leave()
            slot.sockets.http.close()
            slot.sockets.handoff.close()
        self.listener.close()

    async def assert_accounts_balance(self) -> None:
        """Every request is in exactly one column of its ledger, and every connection given was taken."""
        await until(lambda: not any(slot.server._arriving for slot in self.slots), "the arrivals")
        for slot in self.slots:
            slot.server.publish_state()
            counted = slot.ledger
            ended = counted.completed + counted.failed + counted.client_aborted
            assert counted.accepted == ended + slot.state.in_flight, (slot.state.slot, counted)
            assert min(vars(counted).values()) >= 0, (slot.state.slot, counted)
            assert slot.state.in_flight >= 0
        assert sum(slot.ledger.handed_out for slot in self.slots) == sum(slot.ledger.adopted for slot in self.slots)


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of both servers that differ from the usual ones."""
    return dict(getattr(request, "param", {}))


@pytest.fixture
async def host(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]
) -> AsyncIterator[Host]:
    """Two servers that run; every test ends with the audit of their ledgers, after the clients have gone too."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    host = Host(tmp_path, tmp_path_factory.mktemp("run"), settings)
    host.blue.publish()
    host.green.publish()
    host.go_live("blue")
    await until(lambda: all(slot.server.started for slot in host.slots), "the start")
    yield host
    try:
        await host.assert_accounts_balance()
    finally:
        await host.close()
    await host.assert_accounts_balance()
    assert all(slot.state.in_flight == 0 for slot in host.slots)
    assert not complaints, complaints


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  (what is waited for sends no signal)
            await asyncio.sleep(0.002)
    assert condition(), what


async def test_idle_connection_moves(host: Host) -> None:
    """An idle keep-alive connection is answered by the new slot, and the client sees no close."""
    client = await host.client()
    assert (await client.ask()).slot == "blue"
    host.go_live("green")
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask()).slot == "green"
    assert host.blue.ledger == Ledger(accepted=1, completed=1, handed_out=1)
    assert host.green.ledger == Ledger(accepted=1, completed=1, adopted=1)


async def test_silent_connection_moves(host: Host) -> None:
    """A client that connected and said nothing yet is an idle client: it moves, and its first request meets green."""
    client = await host.client()
    host.switch()
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask()).slot == "green"
    assert host.blue.ledger == Ledger(handed_out=1)


async def test_what_comes_with_a_connection_is_read_at_once(host: Host) -> None:
    """A request that is there before its connection does not wait for the next turn of the new owner's loop."""
    client = await host.client()
    host.switch()
    client.send(GET)
    while not host.green.ledger.adopted:  # noqa: ASYNC110  (one turn of the loop at a time)
        await asyncio.sleep(0)
    assert host.green.ledger.accepted == 1
    assert (await client.reply()).slot == "green"


async def test_what_comes_while_a_request_waits_to_be_passed_on_goes_with_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again when its time has come, not once for every piece that is still delivered."""
    canary = {"slot": "green", "weight": 0}
    (host.runtime / "canary").write_text(json.dumps(canary))
    client = await host.client()
    [connection] = host.blue.connections
    tried = []

    def pass_on(_client: socket.socket, _side: Side, held: bytes) -> Outcome:
        tried.append(held)
        return Outcome.TRY_AGAIN if len(tried) == 1 else Outcome.NO_RECEIVER

    monkeypatch.setattr(host.blue.server, "pass_on", pass_on)
    connection.data_received(PINNED)
    connection.data_received(GET)
    assert [(await client.reply()).slot for _ in range(2)] == ["blue"] * 2
    await asyncio.sleep(0.03)  # the time in which it would be tried again and again
    assert tried == [PINNED, PINNED + GET]


async def test_connection_moves_as_often_as_live_does(host: Host) -> None:
    """One connection follows twenty cutovers and is answered by the live slot after each."""
    client = await host.client()
    for number in range(20):
        here, there = host.slots if number % 2 else host.slots[::-1]
        host.go_live(here.state.slot)
        await until(partial(here.holds, 1), "the move")
        there.look()
        assert (await client.ask()).slot == here.state.slot
    assert host.blue.ledger.accepted == host.green.ledger.accepted == 10


async def test_busy_connection_moves_after_its_response(host: Host) -> None:
    """A request ends where it began; the connection changes hands after it."""
    client = await host.client()
    client.send(STREAM)
    await client.first_part()
    host.switch()
    assert host.blue.ledger.handed_out == 0
    assert host.blue.connections[0].in_flight == 1
    host.blue.app.proceed.set()
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert await client.reader.readuntil(b"0\r\n\r\n") == b"4\r\nlast\r\n0\r\n\r\n"
    assert (await client.ask()).slot == "green"


@pytest.mark.parametrize("sent", [1, 3, 20, len(GET) - 1])
async def test_half_sent_head_does_not_move(host: Host, sent: int) -> None:
    """From a request's first byte on, its connection stays until it was answered."""
    client = await host.client()
    client.send(GET[:sent])
    await until(lambda: host.blue.ledger.accepted == 1, "the first byte")
    host.switch()
    assert host.blue.ledger.handed_out == 0
    assert (await client.ask(GET[sent:])).slot == "blue"
    assert (await client.ask()).slot == "green"


async def test_empty_lines_between_requests_do_not_hold_a_connection(host: Host) -> None:
    """A stray line end after a request is no request: the connection moves and nothing of the next one is missed."""
    client = await host.client()
    assert (await client.ask(GET + b"\r\n")).slot == "blue"
    host.switch()
    assert (await client.ask()).slot == "green"


async def test_pipelined_requests_are_all_answered_in_order(host: Host) -> None:
    """Requests sent in one breath are answered by the slot that read them, in order, then the connection moves."""
    client = await host.client()
    client.send(SLOW + GET + GET[:10])
    await until(lambda: host.blue.ledger.accepted == 3, "the requests")
    host.switch()
    host.blue.app.proceed.set()
    replies = [await client.reply(), await client.reply(), await client.ask(GET[10:])]
    assert [reply.body for reply in replies] == [b"/slow", b"/hello", b"/hello"]
    assert {reply.slot for reply in replies} == {"blue"}
    assert (await client.ask()).slot == "green"
    assert host.blue.ledger == Ledger(accepted=3, completed=3, drained=3, handed_out=1)


async def test_drained_are_those_in_flight_when_the_gate_shut_and_completed_afterwards(host: Host) -> None:
    """Not what was answered before, not what was begun after on a busy connection, not what failed or was left."""
    before, under_way, failing, leaving = [await host.client() for _ in range(4)]
    await before.ask()
    under_way.send(SLOW)
    failing.send(b"GET /raise-midway HTTP/1.1\r\nHost: x\r\n\r\n")
    leaving.send(SLOW)
    await until(lambda: host.blue.app.running == 3, "the requests")
    host.switch()
    under_way.send(SLOW)
    await until(lambda: host.blue.ledger.accepted == 5, "the one behind")
    leaving.abort()
    await until(lambda: host.blue.ledger.client_aborted == 1, "the leaving")
    assert host.blue.ledger.drained == 0
    host.blue.app.proceed.set()
    for _ in range(2):
        assert (await under_way.reply()).slot == "blue"
    await until(lambda: host.blue.ledger.failed == 1, "the failure")
    assert (host.blue.ledger.completed, host.blue.ledger.drained) == (3, 1)
    assert host.green.ledger.drained == 0


async def test_long_pipeline_crosses_a_cutover(host: Host) -> None:
    """Hundreds of pipelined requests around a cutover: each is answered once, the first by blue, the last by green."""
    client = await host.client()
    for _ in range(4):
        client.send(GET * 50)
        await asyncio.sleep(0)
    await client.reply()
    host.go_live("green")
    slots = [(await client.reply()).slot for _ in range(199)]
    slots += [(await client.ask()).slot for _ in range(3)]
    assert slots == sorted(slots)  # blue, then green, and never back
    assert slots[-1] == "green"


async def test_answered_upload_does_not_move_in_the_middle_of_its_body(host: Host) -> None:
    """An answer that came before the end of the upload leaves the connection where it is until the last byte."""
    client = await host.client()
    head = b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
    assert (await client.ask(head + b"12345")).slot == "blue"
    host.switch()
    assert host.blue.ledger.handed_out == 0
    client.send(b"67890")
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask()).slot == "green"
    assert host.blue.ledger == Ledger(accepted=1, completed=1, handed_out=1)


async def test_request_behind_the_end_of_an_answered_upload_is_not_missed(host: Host) -> None:
    """The end of an upload and the next request in one packet: what was read here is answered here, then it moves."""
    client = await host.client()
    await client.ask(b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
    host.switch()
    assert (await client.ask(b"67890" + GET)).slot == "blue"
    assert (await client.ask()).slot == "green"


async def test_garbage_in_an_answered_upload_is_counted(host: Host) -> None:
    """A chunked upload that turns to garbage after its answer ends with a 400 that stands in the account."""
    client = await host.client()
    await client.ask(b"POST /hello HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert (await client.ask(b"no length\r\n")).status == 400
    assert host.blue.ledger == Ledger(accepted=2, completed=2)


async def test_upload_under_way_stays(host: Host) -> None:
    """A chunked upload that began before the cutover reaches the slot in which it began, every byte of it."""
    client = await host.client()
    client.send(b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await until(lambda: host.blue.app.running, "the request")
    host.switch()
    reply = await client.ask(b"3\r\ndef\r\n0\r\n\r\n")
    assert (reply.slot, reply.body) == ("blue", b"abcdef")
    assert (await client.ask()).slot == "green"


async def test_response_that_is_not_yet_sent_does_not_move(host: Host) -> None:
    """While a byte of a response waits to be sent, the connection stays."""
    client = await host.client()
    await client.ask()
    connection = host.blue.connections[0]
    connection.transport.write(b"x" * (32 << 20))  # more than the kernel takes while the client does not read
    assert connection.transport.get_write_buffer_size() > 0
    host.switch()
    assert host.blue.ledger.handed_out == 0
    async with asyncio.timeout(PATIENCE):
        await client.reader.readexactly(32 << 20)
    await until(lambda: host.green.ledger.adopted == 1, "the move")


@pytest.mark.parametrize(
    "request_", [b"GET /hello HTTP/1.0\r\n\r\n", b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
)
async def test_client_that_wants_a_close_gets_it(host: Host, request_: bytes) -> None:
    """HTTP/1.0 and Connection: close are answered, closed and counted; there is nothing to move."""
    client = await host.client()
    assert (await client.ask(request_)).status == 200
    assert await client.rest() == b""
    host.switch()
    assert host.blue.ledger == Ledger(accepted=1, completed=1)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS, the most frequent of all
        b"hello there\r\n\r\n",
        b"GET /a b c HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.7\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    ],
)
async def test_garbage_is_answered_and_counted(host: Host, garbage: bytes) -> None:
    """What is not HTTP gets a 400 and a close, and counts as one request that was answered."""
    client = await host.client()
    assert (await client.ask(garbage)).status == 400
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger(accepted=1, completed=1)


async def test_garbage_after_requests_is_counted_once(host: Host) -> None:
    """A connection that turns to garbage has its good requests and one bad one in the ledger."""
    client = await host.client()
    await client.ask()
    await client.ask()
    assert (await client.ask(b"\x00\x01\x02\r\n\r\n")).status == 400
    await client.rest()
    assert host.blue.ledger == Ledger(accepted=3, completed=3)


async def test_garbage_behind_a_request_under_way_keeps_the_sum(host: Host) -> None:
    """Garbage pipelined behind a running request ends the connection; both are in the account, once."""
    client = await host.client()
    client.send(SLOW)
    await until(lambda: host.blue.app.running, "the request")
    client.send(b"\x00\x01\x02\r\n\r\n")
    assert b" 400 " in await client.rest()
    host.blue.app.proceed.set()
    await until(lambda: not host.blue.app.running, "the end of the application")
    counted = host.blue.ledger
    assert counted.accepted == 2
    assert counted.completed == 1


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
async def test_refused_upgrade_is_a_request_like_any_other(host: Host, request_: bytes) -> None:
    """A client that offers HTTP/2 (curl --http2, Java) is answered in HTTP/1.1, and its connection still moves."""
    client = await host.client()
    assert (await client.ask(request_)).slot == "blue"
    assert (await client.ask()).slot == "blue"
    host.switch()
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask(request_)).slot == "green"
    assert host.blue.ledger == Ledger(accepted=2, completed=2, handed_out=1)


async def test_client_that_leaves_counts_as_aborted(host: Host) -> None:
    """A client that goes away in the middle of its answer is the client's doing, not a failure."""
    client = await host.client()
    client.send(STREAM)
    await client.first_part()
    client.abort()
    await until(lambda: not host.blue.connections, "the end of the connection")
    host.blue.app.proceed.set()
    await until(lambda: not host.blue.app.running, "the end of the application")
    assert host.blue.ledger == Ledger(accepted=1, client_aborted=1)


async def test_client_that_leaves_in_mid_head_counts_as_aborted(host: Host) -> None:
    """Half a head and then nothing was a request that its client gave up."""
    client = await host.client()
    client.send(b"GET /he")
    await until(lambda: host.blue.ledger.accepted == 1, "the first byte")
    client.abort()
    await until(lambda: not host.blue.connections, "the end of the connection")
    assert host.blue.ledger == Ledger(accepted=1, client_aborted=1)


async def test_client_that_leaves_a_pipeline_behind_is_counted_once_for_each(host: Host) -> None:
    """Of two pipelined requests whose client left, the one that ran to its end is not counted a second time."""
    client = await host.client()
    client.send(b"GET /parts HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    await client.first_part()
    await until(lambda: host.blue.ledger.accepted == 2, "the requests")
    client.abort()
    host.blue.app.proceed.set()  # not before it writes will the server know: with a pipeline waiting it does not read
    await until(lambda: not host.blue.connections and not host.blue.app.running, "the end")
    assert host.blue.ledger == Ledger(accepted=2, client_aborted=2)


async def test_application_that_raises_counts_as_failed(host: Host) -> None:
    """An application that raises is a 500 to the client and a failure in the account."""
    client = await host.client()
    assert (await client.ask(b"GET /raise HTTP/1.1\r\nHost: x\r\n\r\n")).status == 500
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger(accepted=1, failed=1)


async def test_answer_that_breaks_off_counts_as_failed(host: Host) -> None:
    """An answer that breaks off in the middle is our failure, not the client's leaving."""
    client = await host.client()
    client.send(b"GET /raise-midway HTTP/1.1\r\nHost: x\r\n\r\n")
    await client.first_part()
    host.blue.app.proceed.set()
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger(accepted=1, failed=1)


async def test_failure_takes_the_pipeline_with_it(host: Host) -> None:
    """Requests behind one that failed were read and will not be answered: they failed as well."""
    client = await host.client()
    client.send(b"GET /raise HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    assert (await client.reply()).status == 500
    await client.rest()
    assert host.blue.ledger == Ledger(accepted=2, failed=2)


async def test_nobody_there_to_take(host: Host) -> None:
    """While nobody listens where `live` leads, the old slot answers on; as soon as somebody does, it hands over."""
    held = host.runtime / "held.sock"
    (host.runtime / "green/handoff.sock").rename(held)
    client = await host.client()
    host.switch()
    assert host.blue.state.gate == "closed"
    assert [(await client.ask()).slot for _ in range(3)] == ["blue"] * 3
    held.rename(host.runtime / "green/handoff.sock")
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask()).slot == "green"


async def test_connections_wait_in_the_backlog(host: Host) -> None:
    """With both gates closed a new client is not refused: it waits, and the next slot to open answers it."""
    (host.root / "live").unlink()
    for slot in host.slots:
        slot.look()
    client = await host.client(known=False)
    client.send(GET)
    assert not any(slot.connections for slot in host.slots)
    host.go_live("green")
    assert (await client.reply()).slot == "green"


async def test_door_is_never_handed_over_and_counts_apart(host: Host) -> None:
    """A slot's own door answers with its gate closed, stays with the slot, and is not part of the account."""
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


async def test_door_is_closed_with_its_slot(host: Host) -> None:
    """Who came through a slot's own door wanted that slot: it is closed when the slot leaves, not given to another."""
    client = Client(*await asyncio.open_unix_connection(str(host.runtime / "green/http.sock")))
    host.clients.append(client)
    await client.ask()
    await host.green.leave()
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger()
    assert host.green.ledger == Ledger(internal=1)


async def test_leaving_server_finishes_then_hands_over(host: Host) -> None:
    """A slot that is told to leave gives its idle connections away at once and the busy one after its answer."""
    idle, busy = await host.client(), await host.client()
    busy.send(SLOW)
    await until(lambda: host.blue.app.running, "the request")
    host.switch()
    leaving = asyncio.create_task(host.blue.leave())
    assert (await idle.ask()).slot == "green"
    assert not leaving.done()
    host.blue.app.proceed.set()
    assert (await busy.reply()).slot == "blue"
    await leaving
    assert host.blue.state.phase == "gone"
    assert (await busy.ask()).slot == "green"
    assert host.blue.ledger == Ledger(accepted=1, completed=1, drained=1, handed_out=2)


@pytest.mark.parametrize("how", ["deadline", "signal"])
@pytest.mark.parametrize("settings", [{"drain": 0}], indirect=True)
async def test_cut_is_counted(host: Host, how: str) -> None:
    """What the drain deadline, or QUIT, ends is failed and cut, and the rest of the account stays true."""
    client = await host.client()
    client.send(STREAM)
    await client.first_part()
    host.switch()
    await host.blue.leave(signal.SIGTERM if how == "deadline" else signal.SIGQUIT)
    assert b"last" not in await client.rest()
    assert host.blue.ledger == Ledger(accepted=1, failed=1, cut=1)


async def test_answer_ready_at_the_moment_of_the_cut_is_counted_once(host: Host) -> None:
    """An application that comes to its end while its connection is cut adds nothing to the account."""
    client = await host.client()
    client.send(SLOW)
    await until(lambda: host.blue.app.running, "the request")
    connection = host.blue.connections[0]
    host.blue.app.proceed.set()
    connection.cut()
    await client.rest()
    await until(lambda: not host.blue.app.running, "the end of the application")
    assert host.blue.ledger == Ledger(accepted=1, failed=1, cut=1)


@pytest.mark.parametrize("settings", [{"handoff": False}], indirect=True)
async def test_without_handoff_idle_connections_are_closed(host: Host) -> None:
    """With handoff switched off a cutover closes idle clients: so a test of zero loss can fail."""
    idle, busy = await host.client(), await host.client()
    await idle.ask()
    busy.send(SLOW)
    await until(lambda: host.blue.app.running, "the request")
    host.switch()
    assert await idle.rest() == b""
    host.blue.app.proceed.set()
    assert (await busy.reply()).slot == "blue"
    assert await busy.rest() == b""
    assert host.blue.ledger == Ledger(accepted=2, completed=2, drained=1)
    assert host.green.ledger == Ledger()


async def test_many_clients_cross_many_cutovers(host: Host) -> None:
    """Twenty clients that never pause, ten cutovers: every request is answered, and both ledgers agree to the last."""
    asked = 0
    over = asyncio.Event()

    async def keep_asking(client: Client) -> None:
        nonlocal asked
        while not over.is_set():
            asked += 1
            assert (await client.ask()).status == 200

    clients = [await host.client() for _ in range(20)]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(keep_asking(client))
        for number in range(10):
            there = host.slots[1 - number % 2]
            host.go_live(there.state.slot)
            await until(partial(there.holds, len(clients)), "all of them")
        over.set()
    assert host.blue.ledger.completed + host.green.ledger.completed == asked
    assert host.blue.ledger.handed_out + host.green.ledger.handed_out == 200


async def test_giver_that_was_met_is_waited_for(host: Host) -> None:
    """A giver between connecting and sending when the taker leaves: the taker stays for it, the client is served."""
    host.go_live("green")
    host.blue.look()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as giver:
        client = Client(*await asyncio.open_connection(*server.getsockname()))
        host.clients.append(client)
        held, _ = server.accept()
        with held:
            giver.connect(str(host.runtime / "blue/handoff.sock"))
            for _ in range(3):  # turns of the loop, in which blue meets the giver
                await asyncio.sleep(0)
            leaving = asyncio.create_task(host.blue.leave())
            for _ in range(3):
                await asyncio.sleep(0.02)
            left_at_once = leaving.done()
            socket.send_fds(giver, [b"c"], [held.fileno()])
            host.green.ledger.handed_out += 1  # it is in green's name that we give
        await leaving
        assert not left_at_once
        assert (await client.ask()).slot == "green"
