"""Shared by the tests of connections: two servers on one listening socket, and a client that sends raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any

from uvicorn.config import Config

from service.contract.worker_state import Ledger, WorkerState, WorkerStateFile
from service.handover.connection import Connection
from service.handover.fd_passing import Outcome
from service.handover.server import SlotServer
from service.handover.sockets import SlotSockets
from service.routing.ownership import Gate
from service.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

TIMEOUT = 5.0  # seconds
GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
PINNED = b"GET /hello HTTP/1.1\r\nHost: x\r\nX-GLM-Slot: candidate\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 64 << 20  # bytes of the answer to /large, more than the kernel takes
STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"


class App:
    """An ASGI application whose path selects its behaviour: at once, delayed, streamed, or an exception."""

    def __init__(self, slot: str) -> None:
        self.slot = slot
        self.proceed = asyncio.Event()
        self.running = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.running += 1
        try:
            await self._answer(scope["path"], receive, send)
        finally:
            self.running -= 1

    async def _answer(self, path: str, receive: Receive, send: Send) -> None:
        if path == "/raise":
            raise RuntimeError("on purpose")
        start: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x-slot", self.slot.encode())]}
        if path == "/large":
            await send(start)
            for _ in range(LARGE >> 20):
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
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
    """A client connection on which a test writes its bytes and reads responses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> Reply:
        """Read one response, with Content-Length or chunked."""
        async with asyncio.timeout(TIMEOUT):
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
        """Read a streamed response up to its first piece."""
        async with asyncio.timeout(TIMEOUT):
            await self.reader.readuntil(b"first \r\n")

    async def rest(self) -> bytes:
        """Read until the server closes or resets the connection."""
        async with asyncio.timeout(TIMEOUT):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
            return b""

    def abort(self) -> None:
        """Reset the connection, as a killed client does."""
        client = self.writer.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Supervisor:
    """The master of a slot's only worker. It stores nothing, unless `stored` is a list."""

    def __init__(self, sockets: SlotSockets) -> None:
        self.is_running = True
        self.stored: list[socket.socket] | None = None
        self._sockets = sockets

    def withdraw(self) -> None:
        self._sockets.withdraw()

    def store(self, client: socket.socket) -> Outcome:
        if self.stored is None:
            return Outcome.NO_RECEIVER
        self.stored.append(client.dup())
        return Outcome.SENT


class Slot:
    """The server of one slot, with its sockets, ledger and application."""

    def __init__(self, app: App, root: Path, runtime: Path, listener: socket.socket, settings: dict[str, Any]) -> None:
        directory = runtime / app.slot / "1"
        directory.mkdir(parents=True)
        self.app = app
        self.listener = listener.dup()  # both slots run in one event loop, which watches a descriptor for one of them
        self.sockets = SlotSockets.bind(runtime / app.slot, directory)
        self.state = WorkerState.of_this_process(slot=app.slot, generation=1, version="1.0.0")
        self.state.phase = "ready"
        config = Config(
            self.app, http=Connection, loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False
        )
        config.load()
        self.supervisor = Supervisor(self.sockets)
        self.server = SlotServer(
            config,
            Settings(root=root, runtime=runtime, slot=app.slot, **settings),
            Gate(root, runtime, self.sockets.handoff_inode),
            WorkerStateFile(directory / "1.json", self.state),
            public=[self.listener],
            internal=self.sockets.http,
            handoff=self.sockets.handoff,
            supervisor=self.supervisor,
        )
        self.task = asyncio.create_task(self.server._serve([]))

    @property
    def ledger(self) -> Ledger:
        return self.state.ledger

    @property
    def connections(self) -> list[Any]:
        """The client connections, with a transport (Connection) or at rest, without those of the internal socket."""
        return list(self.server.clients)

    def holds(self, count: int) -> bool:
        return self.server.is_serving and len(self.connections) == count

    def publish(self) -> None:
        self.sockets.publish("http.sock")
        self.sockets.publish("handoff.sock")

    def tick(self) -> None:
        """Follow `live` now, as the server does every tick."""
        self.server.follow()

    async def leave(self, number: Signals = SIGTERM) -> None:
        """Send the server a signal and wait until it has ended; it has no siblings, and its master ends too."""
        self.supervisor.is_running = False
        self.server.handle_exit(number, None)
        async with asyncio.timeout(TIMEOUT):
            await self.task


class Host:
    """Blue and green on one listening socket."""

    def __init__(self, root: Path, runtime: Path, apps: tuple[App, App], settings: dict[str, Any]) -> None:
        self.root = root
        self.runtime = runtime
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.blue, self.green = (Slot(app, root, runtime, self.listener, settings) for app in apps)
        self.clients: list[Client] = []

    @property
    def slots(self) -> tuple[Slot, Slot]:
        return self.blue, self.green

    def go_live(self, slot: str) -> None:
        (self.root / "next").symlink_to(slot)
        (self.root / "next").rename(self.root / "live")

    def cut_over(self) -> None:
        """Make green live. When this returns, blue has moved every connection that can be moved."""
        self.go_live("green")
        self.blue.tick()
        self.blue.tick()

    async def client(self, *, accepted: bool = True) -> Client:
        """Connect; with `accepted` wait until blue or green has accepted the connection."""
        before = sum(len(slot.connections) for slot in self.slots)
        client = Client(*await asyncio.open_connection(*self.listener.getsockname()))
        self.clients.append(client)
        if accepted:
            await until(lambda: sum(len(slot.connections) for slot in self.slots) > before, "the connection")
        return client

    async def close(self) -> None:
        for client in self.clients:
            client.writer.close()
            with contextlib.suppress(ConnectionError):
                await client.writer.wait_closed()
        for slot in self.slots:
            slot.app.proceed.set()
            await slot.leave()
            slot.listener.close()
            slot.sockets.http.close()
            slot.sockets.handoff.close()
        self.listener.close()

    async def assert_ledgers_add_up(self) -> None:
        """Assert that each request is counted in one field of a ledger, and that each sent connection was adopted."""
        await until(lambda: not any(slot.server._arrivals for slot in self.slots), "the arrivals")
        await until(lambda: self._sum("handed_out") == self._sum("adopted"), "the adoption of what was handed out")
        for slot in self.slots:
            slot.server.publish_state()
            counted = slot.ledger
            ended = counted.completed + counted.failed + counted.client_aborted
            assert counted.accepted == ended + slot.state.in_flight, (slot.state.slot, counted)
            assert min(vars(counted).values()) >= 0, (slot.state.slot, counted)
            assert slot.state.in_flight >= 0

    def _sum(self, count: str) -> int:
        return sum(getattr(slot.ledger, count) for slot in self.slots)


@asynccontextmanager
async def running_host(
    root: Path, runtime: Path, *, app: Callable[[str], App] = App, **settings: Any
) -> AsyncIterator[Host]:
    """Run both servers, blue live. At the end both ledgers add up, and the event loop has reported no exception."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    host = Host(root, runtime, (app("blue"), app("green")), settings)
    for slot in host.slots:
        slot.publish()
    host.go_live("blue")
    await until(lambda: all(slot.server.started for slot in host.slots), "the start")
    yield host
    try:
        await host.assert_ledgers_add_up()
    finally:
        await host.close()
    await host.assert_ledgers_add_up()
    assert all(slot.state.in_flight == 0 for slot in host.slots)
    assert not errors, errors


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition holds; fails after TIMEOUT."""
    try:
        async with asyncio.timeout(TIMEOUT):
            while not condition():  # noqa: ASYNC110  (no event to wait for)
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{what} did not come within {TIMEOUT:g} s") from None
