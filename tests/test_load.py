"""The load test reports every kind of loss, and none for a correct server."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.loadtest import Load, LossKind, Mix, Report, run
from deploy.loadtest.__main__ import main
from deploy.loadtest.losses import RequestLost
from deploy.loadtest.raw_connection import RawConnection
from deploy.loadtest.responses import Response, read_response

HOST = "127.0.0.1"
NO_CLIENTS = Mix(busy=0, pool=0, silent=0, upload=0, stream=0, pipelined=0, one_shot=0, http10=0)
BUSY = replace(NO_CLIENTS, busy=2)
STREAM = replace(NO_CLIENTS, stream=2)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handle: Handler) -> AsyncIterator[int]:
    """Run a server that calls `handle` for every connection; yields its port and leaves no task behind."""
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST instead of a FIN."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class CorrectServer:
    """A small server that is correct; each subclass below is wrong in one way."""

    idle_limit: float | None = None

    def __init__(self) -> None:
        self.version = "1.0.0"
        self.responses = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self.idle_limit)
            except TimeoutError:
                return self.on_idle(writer)
            start, *lines = head.decode().strip().split("\r\n")
            _, path, protocol = start.split()
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await self.respond(writer, path, json.loads(body) if body else {})
            self.responses += 1
            if protocol == "HTTP/1.0" or headers.get("connection") == "close" or writer.is_closing():
                return None

    def on_idle(self, writer: asyncio.StreamWriter) -> None:
        writer.close()

    def headers(self) -> dict[str, str]:
        return {"x-model-version": self.version, "x-slot": "blue", "x-request-id": f"r{self.responses}"}

    def text(self, parameters: dict[str, object]) -> str:
        return f"{self.version} answers {len(json.dumps(parameters['messages']))}"

    async def respond(self, writer: asyncio.StreamWriter, path: str, parameters: dict[str, object]) -> None:
        if path == "/version":
            await self.write(writer, {"version": self.version})
        elif path == "/v1/models":
            await self.write(writer, {"object": "list", "data": [{"id": "tiny"}]})
        elif parameters["stream"]:
            await self.write_stream(writer, parameters)
        else:
            message = {"role": "assistant", "content": self.text(parameters)}
            await self.write(writer, {"choices": [{"index": 0, "message": message, "finish_reason": "length"}]})

    async def write(self, writer: asyncio.StreamWriter, content: dict[str, object], status: str = "200 OK") -> None:
        body = json.dumps(content).encode()
        lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers().items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    def events(self, parameters: dict[str, object]) -> list[str]:
        chunk = '{{"id": "c1", "choices": [{{"delta": {{"content": {}}}, "finish_reason": {}}}]}}'
        words = [chunk.format(json.dumps(word + " "), "null") for word in self.text(parameters).split()]
        return [*words, chunk.format('""', '"stop"'), "[DONE]"]

    async def write_stream(self, writer: asyncio.StreamWriter, parameters: dict[str, object]) -> None:
        lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in self.headers().items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        for event in self.events(parameters):
            data = f"data: {event}\n\n".encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.005)
        writer.write(b"0\r\n\r\n")


def load(server: CorrectServer, clients: Mix, seconds: float = 0.06, time_limit: float = 5.0) -> Report:
    """Run a short load on that server and return its report; asserts that the counts add up."""

    async def scenario() -> Report:
        async with listening(server.handle) as port:
            return await run(HOST, port, seconds=seconds, mix=clients, time_limit=time_limit)

    report = asyncio.run(asyncio.wait_for(scenario(), 10))
    assert report.sent == report.ok + report.lost
    assert report.ok == sum(report.by_version.values()) == sum(report.by_slot.values())
    assert report.lost == sum(loss.count for loss in report.losses)
    for stats in report.by_class.values():
        assert stats.sent == stats.ok + stats.lost
    return report


def loss_kinds(report: Report) -> set[LossKind]:
    return {loss.kind for loss in report.losses}


def test_a_correct_server_loses_nothing() -> None:
    """Every class completes requests and none is lost, including those in flight at the end."""
    server = CorrectServer()
    report = load(server, replace(Mix(), silent=8), seconds=0.8)
    assert report.lost == 0, report.losses
    assert report.sent == server.responses
    assert all(stats.ok for stats in report.by_class.values())
    assert report.by_version == {"1.0.0": report.ok}
    for name in ("busy", "pool", "upload", "stream", "pipelined"):
        assert report.by_class[name].connections == report.by_class[name].clients
    assert 0 < report.latency.p50_ms <= report.latency.p99_ms <= report.latency.max_ms < 5000


def test_a_report_is_unchanged_by_json() -> None:
    """A report that is written as JSON and read again is equal to the original."""
    report = load(CorrectServer(), BUSY)
    assert Report.model_validate_json(report.model_dump_json()) == report


class ClosesWithinResponse(CorrectServer):
    """Sends a FIN within the body."""

    async def respond(self, writer: asyncio.StreamWriter, path: str, parameters: dict[str, object]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it")
        writer.close()


class ResetsWithinResponse(CorrectServer):
    """Sends a RST within the body."""

    async def respond(self, writer: asyncio.StreamWriter, path: str, parameters: dict[str, object]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it")
        await asyncio.sleep(0.02)
        reset(writer)


class ClosesWithoutResponse(CorrectServer):
    """Reads the request and sends a FIN."""

    async def respond(self, writer: asyncio.StreamWriter, path: str, parameters: dict[str, object]) -> None:
        writer.close()


class RespondsWithError(CorrectServer):
    """Responds with status 500."""

    async def respond(self, writer: asyncio.StreamWriter, path: str, parameters: dict[str, object]) -> None:
        await self.write(writer, {"error": {"message": "out of memory"}}, "500 Internal Server Error")


class OmitsHeader(CorrectServer):
    """Omits one of the required headers."""

    def headers(self) -> dict[str, str]:
        return {name: value for name, value in super().headers().items() if name != "x-request-id"}


class ContradictsVersion(CorrectServer):
    """Sends one version in the header and another in the body."""

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "x-model-version": "2.0.0"}


class NamesVersionInEvents(CorrectServer):
    """Names the version in the events of a stream alone, since its head was sent before that was known."""

    fingerprints: tuple[str, ...] = ("1.0.0",)

    def headers(self) -> dict[str, str]:
        return {name: value for name, value in super().headers().items() if name != "x-model-version"}

    def events(self, parameters: dict[str, object]) -> list[str]:
        *chunks, done = super().events(parameters)
        names = [*self.fingerprints, *[self.fingerprints[-1]] * len(chunks)]
        return [
            *(
                json.dumps({**json.loads(one), "system_fingerprint": name})
                for one, name in zip(chunks, names, strict=False)
            ),
            done,
        ]


class ContradictsEvents(NamesVersionInEvents):
    """Changes the version within a stream."""

    fingerprints = ("1.0.0", "2.0.0")


class SendsSurplus(CorrectServer):
    """Sends a second response after each, as some servers do before a close."""

    async def respond(self, writer: asyncio.StreamWriter, path: str, parameters: dict[str, object]) -> None:
        await super().respond(writer, path, parameters)
        writer.write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")


class NeverResponds(CorrectServer):
    """Reads the request and does not respond."""

    async def respond(self, writer: asyncio.StreamWriter, path: str, parameters: dict[str, object]) -> None:
        await asyncio.sleep(5)


class SendsNoHttp(CorrectServer):
    """Sends something that is not HTTP."""

    async def respond(self, writer: asyncio.StreamWriter, path: str, parameters: dict[str, object]) -> None:
        writer.write(b"hello\r\n\r\n")


@pytest.mark.parametrize(
    ("server", "kind", "came"),
    [
        (ClosesWithinResponse(), LossKind.CUT, "end of stream after 50 bytes"),
        (ResetsWithinResponse(), LossKind.RESET, "reset after 50 bytes"),
        (ClosesWithoutResponse(), LossKind.CLOSED, "end of stream after 0 bytes"),
        (RespondsWithError(), LossKind.STATUS, "500 Internal Server Error: "),
        (OmitsHeader(), LossKind.HEADER, "200 without x-request-id"),
        (ContradictsVersion(), LossKind.MIXED, "version '1.0.0' in the body, '2.0.0' in the header"),
        (SendsNoHttp(), LossKind.MALFORMED, "illegal status line"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, CorrectServer) else "",
)
def test_a_wrong_response_is_a_loss(server: CorrectServer, kind: LossKind, came: str) -> None:
    """Every kind of wrong response is reported with its kind and with what was received."""
    report = load(server, replace(NO_CLIENTS, one_shot=1, pool=1))
    lost = [loss for loss in report.losses if loss.kind is kind and loss.came.startswith(came)]
    assert lost
    assert lost[0].count >= 1
    assert lost[0].sent.startswith("GET /v")
    assert report.started <= lost[0].at <= time.monotonic()


def test_unsolicited_bytes_are_a_loss() -> None:
    """A second response to one request is reported, with keep-alive and with `Connection: close`."""
    report = load(SendsSurplus(), replace(NO_CLIENTS, one_shot=1, busy=1))
    assert report.by_class["one-shot"].lost == report.by_class["one-shot"].sent
    assert report.by_class["busy"].lost > 0
    assert loss_kinds(report) <= {LossKind.EXTRA, LossKind.STATUS}


def test_no_response_is_a_loss() -> None:
    """A request without a response is lost after the time limit and is not sent again."""
    report = load(NeverResponds(), replace(NO_CLIENTS, busy=1), time_limit=0.2)
    assert (report.sent, report.lost, loss_kinds(report)) == (1, 1, {LossKind.TIMEOUT})
    assert report.longest_pause_ms >= 190


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_closing_an_idle_connection_is_a_loss(how: str) -> None:
    """The end of a connection that is idle, or has not carried a request yet, is reported."""

    class ClosesIdleConnections(CorrectServer):
        idle_limit = 0.05

        def on_idle(self, writer: asyncio.StreamWriter) -> None:
            (reset if how == "reset" else asyncio.StreamWriter.close)(writer)

    report = load(ClosesIdleConnections(), replace(NO_CLIENTS, pool=2, silent=2), seconds=0.4)
    assert loss_kinds(report) == {LossKind.IDLE}
    for name in ("pool", "silent"):
        assert report.by_class[name].idle_closes == report.by_class[name].lost >= 2
    assert report.by_class["silent"].ok == 0


def test_a_refused_connection_is_a_loss() -> None:
    """A refused connection is a lost request in every class, and the client pauses before the next one."""

    async def scenario() -> Report:
        async with listening(CorrectServer().handle) as port:
            pass
        return await run(HOST, port, seconds=0.3, mix=Mix())

    report = asyncio.run(scenario())
    assert report.ok == 0
    assert loss_kinds(report) == {LossKind.REFUSED}
    assert all(stats.clients <= stats.lost == stats.sent for stats in report.by_class.values())
    assert report.sent < 200


def test_the_version_of_a_stream_may_be_in_its_events_alone() -> None:
    """It is counted there; two in one stream, or none at all, are a loss."""
    report = load(NamesVersionInEvents(), STREAM)
    assert (report.lost, set(report.by_version)) == (0, {"1.0.0"})
    assert loss_kinds(load(ContradictsEvents(), STREAM)) == {LossKind.MIXED}
    nameless = NamesVersionInEvents()
    nameless.fingerprints = ("",)
    assert loss_kinds(load(nameless, STREAM)) == {LossKind.HEADER}


def test_an_announced_close_is_counted_and_not_a_loss() -> None:
    """A connection that ends after `connection: close` is counted in announced_closes and is not a loss."""

    class AnnouncesClose(CorrectServer):
        def headers(self) -> dict[str, str]:
            return {**super().headers(), "connection": "close"}

    report = load(AnnouncesClose(), BUSY)
    assert report.lost == 0
    assert report.by_class["busy"].announced_closes == report.sent == report.by_class["busy"].connections


def test_pipelined_requests_without_a_response_are_lost() -> None:
    """When the connection ends after two of four responses, two requests are completed and two are lost."""

    class StopsAfterTwo(CorrectServer):
        async def respond(self, writer: asyncio.StreamWriter, path: str, parameters: dict[str, object]) -> None:
            await super().respond(writer, path, parameters)
            if self.responses % 2:
                writer.close()

    report = load(StopsAfterTwo(), replace(NO_CLIENTS, pipelined=1))
    assert report.sent % 4 == 0
    assert report.ok == report.lost == report.sent / 2


def test_two_texts_by_one_version_are_a_loss() -> None:
    """Two texts by one version for one greedy request are reported as mixed, unless `compare` is False."""

    class ChangesText(CorrectServer):
        def text(self, parameters: dict[str, object]) -> str:
            return f"answer {self.responses}"

    report = load(ChangesText(), STREAM, seconds=0.4)
    assert loss_kinds(report) == {LossKind.MIXED}

    async def scenario() -> Report:
        async with listening(ChangesText().handle) as port, Load(HOST, port, STREAM, compare=False) as running:
            await asyncio.sleep(0.2)
            return await running.stop()

    assert asyncio.run(scenario()).lost == 0


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        (['{"id": "a", "choices": []}'], LossKind.CUT),
        (['{"id": "a", "choices": []}', '{"error": {"message": "gone"}}', "[DONE]"], LossKind.CUT),
        (['{"id": "a", "choices": []}', '{"id": "b", "choices": []}', "[DONE]"], LossKind.MIXED),
        (["nonsense", "[DONE]"], LossKind.MALFORMED),
    ],
    ids=["no-done", "error", "two-ids", "no-json"],
)
def test_a_stream_must_be_one_complete_response(events: list[str], kind: LossKind) -> None:
    """A stream without its last event, with an error, with two ids, or without JSON is a loss."""

    class Streams(CorrectServer):
        def events(self, parameters: dict[str, object]) -> list[str]:
            return events

    assert loss_kinds(load(Streams(), STREAM)) == {kind}


def test_a_response_before_the_end_of_an_upload_is_a_loss() -> None:
    """A response that arrives before the request was sent completely is reported."""

    class RespondsEarly(CorrectServer):
        async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            await self.write(writer, {}, "503 Service Unavailable")

    report = load(RespondsEarly(), replace(NO_CLIENTS, upload=1), seconds=0.3)
    assert loss_kinds(report) == {LossKind.EARLY}
    assert report.losses[0].came.startswith("503 Service Unavailable before")


def test_the_report_has_the_time_of_every_switch() -> None:
    """A switch under load is reported for every client, with the last response by the old version."""
    server = CorrectServer()

    async def scenario() -> tuple[float, float, Report]:
        async with (
            listening(server.handle) as port,
            Load(HOST, port, replace(NO_CLIENTS, busy=2, pipelined=1)) as running,
        ):
            await asyncio.sleep(0.15)
            before = time.monotonic()
            server.version = "2.0.0"
            await asyncio.sleep(0.15)
            assert running.progress().by_version.keys() == {"1.0.0", "2.0.0"}
            return before, time.monotonic(), await running.stop()

    renamed, ended, report = asyncio.run(scenario())
    assert report.lost == 0, report.losses
    assert report.last_response_by("1.0.0", sent_after=renamed) is None
    assert report.last_response_by("1.0.0", sent_after=renamed - 0.1) is not None
    last = report.last_response_by("2.0.0", sent_after=ended - 0.1)
    assert last is not None
    assert last.sent <= last.answered
    assert [switch.version for switch in report.switches] == ["1.0.0"] * 4 + ["2.0.0"] * 4


def read(raw: bytes, *, with_reset: bool = False) -> list[Response]:
    """Read every response in these bytes, which arrive one by one; raises RequestLost."""

    async def send_bytes(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in raw:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        if with_reset:
            await asyncio.sleep(0.02)
            reset(writer)

    async def scenario() -> list[Response]:
        async with listening(send_bytes) as port:
            connection = await RawConnection.connect((HOST, port))
            responses: list[Response] = []
            try:
                await asyncio.sleep(0.05)
                while connection.response_bytes or not responses:
                    responses.append(await read_response(connection))
                    connection.begin_response()
            finally:
                await connection.close()
            return responses

    return asyncio.run(asyncio.wait_for(scenario(), 5))


def test_the_reader_accepts_every_framing() -> None:
    """A length, chunks with extensions and trailers, no body, an interim response and a FIN delimit responses."""
    responses = read(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello"
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;x=y\r\nhello\r\nA\r\n, world...\r\n0\r\nTrailer: 1\r\n\r\n"
        b"HTTP/1.1 204 No Content\r\n\r\n"
        b"HTTP/1.1 404 Not Found\r\n\r\nuntil the end"
    )
    assert [response.body for response in responses] == [b"hello", b"hello, world...", b"", b"until the end"]
    assert [response.status for response in responses] == [200, 200, 204, 404]
    assert [response.closes for response in responses] == [False, False, False, True]
    assert responses[0].headers["x-a"] == "1, 2"
    assert responses[3].reason == "Not Found"


def test_a_complete_response_before_a_reset_is_read() -> None:
    """Bytes received before a reset are read before the reset is reported."""
    responses = read(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", with_reset=True)
    assert [response.body for response in responses] == [b"ok"]


def test_a_reset_does_not_end_a_body() -> None:
    """A body without a length ends with a FIN; after a reset it is incomplete."""
    with pytest.raises(RequestLost) as lost:
        read(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", with_reset=True)
    assert lost.value.kind is LossKind.RESET


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", LossKind.CLOSED),
        (b"HTTP/1.1 200 OK\r\ncontent-le", LossKind.CUT),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", LossKind.CUT),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", LossKind.CUT),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n", LossKind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", LossKind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n", LossKind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello", LossKind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello", LossKind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", LossKind.MALFORMED),
        (b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello", LossKind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\nx-slot: blue\r\n green\r\ncontent-length: 5\r\n\r\nhello", LossKind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", LossKind.MALFORMED),
        (b"HTTP/2 200\r\n\r\n", LossKind.MALFORMED),
        (b"HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", LossKind.MALFORMED),
        (b"HTTP/1.1 20x OK\r\n\r\n", LossKind.MALFORMED),
    ],
)
def test_the_reader_rejects_incomplete_and_ambiguous_responses(raw: bytes, kind: LossKind) -> None:
    """A response that is truncated, or that could be interpreted in two ways, is a loss."""
    with pytest.raises(RequestLost) as lost:
        read(raw)
    assert lost.value.kind is kind


def test_a_mix_scales_and_keeps_every_class() -> None:
    """Scaling multiplies every class, keeps at least one client in each, and adds none to an empty class."""
    assert Mix().scaled(3).busy == 3 * Mix().busy
    assert all(count == 1 for count in Mix().scaled(0.01).counts().values())
    assert sum(NO_CLIENTS.scaled(9).counts().values()) == 0
    with pytest.raises(ValueError, match="cannot be negative"):
        Mix(busy=-1)


def test_the_help_describes_every_class() -> None:
    """`--help` lists every class with its number of clients and a description."""
    text = CliRunner().invoke(main, ["--help"]).output
    for name, count in Mix().counts().items():
        assert re.search(rf"^  {name} \({count}\) +[A-Z]\w+", text, re.MULTILINE), text


def test_an_api_key_that_no_header_can_have_is_an_error() -> None:
    """The command ends with a usage error that does not repeat the key."""
    result = CliRunner().invoke(main, ["127.0.0.1:1"], env={"GLM_API_KEY": "secret\r\nhost: y"})
    assert result.exit_code == 2
    assert "the API key has characters" in result.output
    assert "secret" not in result.output


async def command(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "deploy.loadtest",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_reports_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """After a signal the report contains every request, and the exit status is 0."""
    out = tmp_path / "report.json"

    async def scenario() -> tuple[int | None, str]:
        async with listening(CorrectServer().handle) as port:
            process = await command(HOST, str(port), "--seconds", "0", "--json", str(out))
            assert process.stderr is not None
            line = (await process.stderr.readline()).decode()
            process.send_signal(number)
            await process.communicate()
            return process.returncode, line

    status, line = asyncio.run(asyncio.wait_for(scenario(), 15))
    report = Report.model_validate_json(out.read_text())
    assert line.startswith("1 s: sent ")
    assert ", lost 0, in flight " in line
    assert (status, report.lost) == (0, 0)
    assert report.sent == report.ok > 0


def test_the_command_exits_with_1_after_a_loss() -> None:
    """The exit status is 1 after a loss, and stdout is one JSON document."""

    async def scenario() -> tuple[int | None, bytes]:
        async with listening(RespondsWithError().handle) as port:
            process = await command(f"{HOST}:{port}", "--seconds", "0.3", "--json")
            out, _ = await process.communicate()
            return process.returncode, out

    status, out = asyncio.run(asyncio.wait_for(scenario(), 15))
    assert status == 1
    assert Report.model_validate_json(out).lost > 0
