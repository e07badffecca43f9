"""The hard load finds every kind of loss, and none in a server that works."""

from __future__ import annotations

import asyncio
import json
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

from deploy.loadtest import Kind, Load, Mix, Report, run
from deploy.loadtest.wire import Answer, BrokenError, Wire, read_answer

LOCAL = "127.0.0.1"
NOBODY = Mix(busy=0, pool=0, silent=0, upload=0, stream=0, pipelined=0, one_shot=0, http10=0)
BUSY = replace(NOBODY, busy=2)
STREAM = replace(NOBODY, stream=2)

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[int]:
    """The port of a server that treats each connection so, on a loop that ends clean."""
    talks: set[asyncio.Task[None]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(take, LOCAL, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST instead of a FIN."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Model:
    """A small server that does everything right; each subclass below does one thing wrong."""

    idle_limit: float | None = None

    def __init__(self) -> None:
        self.version = "1.0.0"
        self.answered = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self.idle_limit)
            except TimeoutError:
                return self.on_idle(writer)
            start, *lines = head.decode().strip().split("\r\n")
            _, path, protocol = start.split()
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await self.answer(writer, path, json.loads(body) if body else {})
            self.answered += 1
            if protocol == "HTTP/1.0" or headers.get("connection") == "close" or writer.is_closing():
                return None

    def on_idle(self, writer: asyncio.StreamWriter) -> None:
        writer.close()

    def headers(self) -> dict[str, str]:
        return {"x-model-version": self.version, "x-slot": "blue", "x-request-id": f"r{self.answered}"}

    def text(self, asked: dict[str, object]) -> str:
        return f"{self.version} answers {len(json.dumps(asked['messages']))}"

    async def answer(self, writer: asyncio.StreamWriter, path: str, asked: dict[str, object]) -> None:
        if path == "/version":
            await self.write(writer, {"version": self.version})
        elif path == "/v1/models":
            await self.write(writer, {"object": "list", "data": [{"id": "tiny"}]})
        elif asked["stream"]:
            await self.write_stream(writer, asked)
        else:
            message = {"role": "assistant", "content": self.text(asked)}
            await self.write(writer, {"choices": [{"index": 0, "message": message, "finish_reason": "length"}]})

    async def write(self, writer: asyncio.StreamWriter, said: dict[str, object], status: str = "200 OK") -> None:
        body = json.dumps(said).encode()
        lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers().items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    def events(self, asked: dict[str, object]) -> list[str]:
        chunk = '{{"id": "c1", "choices": [{{"delta": {{"content": {}}}, "finish_reason": {}}}]}}'
        words = [chunk.format(json.dumps(word + " "), "null") for word in self.text(asked).split()]
        return [*words, chunk.format('""', '"stop"'), "[DONE]"]

    async def write_stream(self, writer: asyncio.StreamWriter, asked: dict[str, object]) -> None:
        lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in self.headers().items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        for event in self.events(asked):
            data = f"data: {event}\n\n".encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.005)
        writer.write(b"0\r\n\r\n")


def load(model: Model, clients: Mix, seconds: float = 0.06, time_limit: float = 5.0) -> Report:
    """The report of a short load on that server; checks that the account adds up."""

    async def scene() -> Report:
        async with listening(model.talk) as port:
            return await run(LOCAL, port, seconds=seconds, mix=clients, time_limit=time_limit)

    report = asyncio.run(asyncio.wait_for(scene(), 10))
    assert report.sent == report.ok + report.lost
    assert report.ok == sum(report.by_version.values()) == sum(report.by_slot.values())
    assert report.lost == sum(loss.count for loss in report.losses)
    for account in report.by_class.values():
        assert account.sent == account.ok + account.lost
    return report


def kinds(report: Report) -> set[Kind]:
    return {loss.kind for loss in report.losses}


def test_a_correct_server_loses_nothing() -> None:
    """Every class is served and not one request is lost, those in flight at the end included."""
    model = Model()
    report = load(model, replace(Mix(), silent=8), seconds=0.8)
    assert report.lost == 0, report.losses
    assert report.sent == model.answered
    assert all(account.ok for account in report.by_class.values())
    assert report.by_version == {"1.0.0": report.ok}
    for name in ("busy", "pool", "upload", "stream", "pipelined"):
        assert report.by_class[name].connections == report.by_class[name].clients
    assert 0 < report.latency.p50_ms <= report.latency.p99_ms <= report.latency.max_ms < 5000


def test_a_report_survives_the_journey_as_json() -> None:
    """What a subprocess writes is what the library gives."""
    report = load(Model(), BUSY)
    assert Report.model_validate_json(report.model_dump_json()) == report


class ClosesMidResponse(Model):
    """Ends with a FIN within the body."""

    async def answer(self, writer: asyncio.StreamWriter, path: str, asked: dict[str, object]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it")
        writer.close()


class ResetsMidResponse(Model):
    """Ends with a RST within the body."""

    async def answer(self, writer: asyncio.StreamWriter, path: str, asked: dict[str, object]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it")
        await asyncio.sleep(0.02)
        reset(writer)


class ClosesWithoutAnswer(Model):
    """Takes the request and ends."""

    async def answer(self, writer: asyncio.StreamWriter, path: str, asked: dict[str, object]) -> None:
        writer.close()


class Fails(Model):
    """Has no answer but an error."""

    async def answer(self, writer: asyncio.StreamWriter, path: str, asked: dict[str, object]) -> None:
        await self.write(writer, {"error": {"message": "out of memory"}}, "500 Internal Server Error")


class LacksHeader(Model):
    """Forgets one of the headers that every answer carries."""

    def headers(self) -> dict[str, str]:
        return {name: value for name, value in super().headers().items() if name != "x-request-id"}


class MixesVersions(Model):
    """Puts one version in the header and another in the body."""

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "x-model-version": "2.0.0"}


class SaysTooMuch(Model):
    """Sends something after each answer, as some servers do before a close."""

    async def answer(self, writer: asyncio.StreamWriter, path: str, asked: dict[str, object]) -> None:
        await super().answer(writer, path, asked)
        writer.write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")


class NeverAnswers(Model):
    """Takes the request and hangs."""

    async def answer(self, writer: asyncio.StreamWriter, path: str, asked: dict[str, object]) -> None:
        await asyncio.sleep(5)


class SpeaksNonsense(Model):
    """Speaks something that is not HTTP."""

    async def answer(self, writer: asyncio.StreamWriter, path: str, asked: dict[str, object]) -> None:
        writer.write(b"hello\r\n\r\n")


@pytest.mark.parametrize(
    ("model", "kind", "came"),
    [
        (ClosesMidResponse(), Kind.CUT, "end of stream after 50 bytes"),
        (ResetsMidResponse(), Kind.RESET, "reset after 50 bytes"),
        (ClosesWithoutAnswer(), Kind.CLOSED, "end of stream after 0 bytes"),
        (Fails(), Kind.STATUS, "500 Internal Server Error: "),
        (LacksHeader(), Kind.HEADER, "200 without x-request-id"),
        (MixesVersions(), Kind.MIXED, "body says version '1.0.0', header '2.0.0'"),
        (SpeaksNonsense(), Kind.MALFORMED, "status line 'hello'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else "",
)
def test_a_wrong_answer_is_a_loss(model: Model, kind: Kind, came: str) -> None:
    """Each way to answer wrongly is found, named, and told with what came instead."""
    report = load(model, replace(NOBODY, one_shot=1, pool=1))
    lost = [loss for loss in report.losses if loss.kind is kind and loss.came.startswith(came)]
    assert lost
    assert lost[0].count >= 1
    assert lost[0].sent.startswith("GET /v")
    assert report.started <= lost[0].at <= time.monotonic()


def test_unasked_bytes_are_a_loss() -> None:
    """A second answer to one request is found on a connection that stays, and on one that ends."""
    report = load(SaysTooMuch(), replace(NOBODY, one_shot=1, busy=1))
    assert report.by_class["one-shot"].lost == report.by_class["one-shot"].sent
    assert report.by_class["busy"].lost > 0
    assert kinds(report) <= {Kind.EXTRA, Kind.STATUS}


def test_silence_is_a_loss() -> None:
    """A request that nobody answers is lost when its time is over, and not asked again."""
    report = load(NeverAnswers(), replace(NOBODY, busy=1), time_limit=0.2)
    assert (report.sent, report.lost, kinds(report)) == (1, 1, {Kind.TIMEOUT})
    assert report.longest_pause_ms >= 190


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_closing_an_idle_connection_is_a_loss(how: str) -> None:
    """A server that ends an idle connection, or one that is connected and silent, is caught."""

    class Impatient(Model):
        idle_limit = 0.05

        def on_idle(self, writer: asyncio.StreamWriter) -> None:
            (reset if how == "reset" else asyncio.StreamWriter.close)(writer)

    report = load(Impatient(), replace(NOBODY, pool=2, silent=2), seconds=0.4)
    assert kinds(report) == {Kind.IDLE}
    for name in ("pool", "silent"):
        assert report.by_class[name].idle_closes == report.by_class[name].lost >= 2
    assert report.by_class["silent"].ok == 0


def test_nobody_listening_is_a_loss() -> None:
    """A refused connection is a lost request in every class, and each is followed by a breath, not by a storm."""

    async def scene() -> Report:
        async with listening(Model().talk) as port:
            pass
        return await run(LOCAL, port, seconds=0.3, mix=Mix())

    report = asyncio.run(scene())
    assert report.ok == 0
    assert kinds(report) == {Kind.REFUSED}
    assert all(account.clients <= account.lost == account.sent for account in report.by_class.values())
    assert report.sent < 200


def test_an_announced_close_is_counted_and_no_loss() -> None:
    """A server may say that it closes after an answer: the client knows, and the report shows it."""

    class Announces(Model):
        def headers(self) -> dict[str, str]:
            return {**super().headers(), "connection": "close"}

    report = load(Announces(), BUSY)
    assert report.lost == 0
    assert report.by_class["busy"].announced_closes == report.sent == report.by_class["busy"].connections


def test_pipelined_requests_left_unanswered_are_all_lost() -> None:
    """When the connection ends after two of four answers, two are answered and two are lost."""

    class StopsAfterTwo(Model):
        async def answer(self, writer: asyncio.StreamWriter, path: str, asked: dict[str, object]) -> None:
            await super().answer(writer, path, asked)
            if self.answered % 2:
                writer.close()

    report = load(StopsAfterTwo(), replace(NOBODY, pipelined=1))
    assert report.sent % 4 == 0
    assert report.ok == report.lost == report.sent / 2


def test_one_version_with_two_answers_is_a_loss() -> None:
    """Two texts by one version for one greedy request are reported as mixed, unless comparing is turned off."""

    class Wavers(Model):
        def text(self, asked: dict[str, object]) -> str:
            return f"answer {self.answered}"

    report = load(Wavers(), STREAM, seconds=0.4)
    assert kinds(report) == {Kind.MIXED}

    async def scene() -> Report:
        async with listening(Wavers().talk) as port, Load(LOCAL, port, STREAM, compare=False) as running:
            await asyncio.sleep(0.2)
            return await running.stop()

    assert asyncio.run(scene()).lost == 0


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        (['{"id": "a", "choices": []}'], Kind.CUT),
        (['{"id": "a", "choices": []}', '{"error": {"message": "gone"}}', "[DONE]"], Kind.CUT),
        (['{"id": "a", "choices": []}', '{"id": "b", "choices": []}', "[DONE]"], Kind.MIXED),
        (["nonsense", "[DONE]"], Kind.MALFORMED),
    ],
    ids=["no-done", "error", "two-ids", "no-json"],
)
def test_a_stream_must_be_one_whole_answer(events: list[str], kind: Kind) -> None:
    """A stream without its end, with an error inside, of two answers, or of no JSON, is a loss."""

    class Streams(Model):
        def events(self, asked: dict[str, object]) -> list[str]:
            return events

    assert kinds(load(Streams(), STREAM)) == {kind}


def test_an_upload_answered_early_is_a_loss() -> None:
    """An answer that comes before the request was sent whole is found while it is being sent."""

    class Hasty(Model):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            await self.write(writer, {}, "503 Service Unavailable")

    report = load(Hasty(), replace(NOBODY, upload=1), seconds=0.3)
    assert kinds(report) == {Kind.EARLY}
    assert report.losses[0].came.startswith("503 Service Unavailable before")


def test_the_report_tells_when_each_client_met_the_new_version() -> None:
    """A switch under load shows in every class, and the old version's last answer can be set against the rename."""
    model = Model()

    async def scene() -> tuple[float, float, Report]:
        async with listening(model.talk) as port, Load(LOCAL, port, replace(NOBODY, busy=2, pipelined=1)) as running:
            await asyncio.sleep(0.15)
            before = time.monotonic()
            model.version = "2.0.0"
            await asyncio.sleep(0.15)
            assert running.progress().by_version.keys() == {"1.0.0", "2.0.0"}
            return before, time.monotonic(), await running.stop()

    renamed, ended, report = asyncio.run(scene())
    assert report.lost == 0, report.losses
    assert report.last_answer_by("1.0.0", sent_after=renamed) is None
    assert report.last_answer_by("1.0.0", sent_after=renamed - 0.1) is not None
    last = report.last_answer_by("2.0.0", sent_after=ended - 0.1)
    assert last is not None
    assert last.sent <= last.answered
    assert [switch.version for switch in report.switches] == ["1.0.0"] * 4 + ["2.0.0"] * 4


def read(raw: bytes, *, with_reset: bool = False) -> list[Answer]:
    """Every answer in these bytes, which come one by one; raises BrokenError like the reader."""

    async def dribble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in raw:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        if with_reset:
            await asyncio.sleep(0.02)
            reset(writer)

    async def scene() -> list[Answer]:
        async with listening(dribble) as port:
            wire = await Wire.connect((LOCAL, port))
            answers: list[Answer] = []
            try:
                await asyncio.sleep(0.05)
                while wire.held or not answers:
                    answers.append(await read_answer(wire))
                    wire.begin()
            finally:
                await wire.close()
            return answers

    return asyncio.run(asyncio.wait_for(scene(), 5))


def test_the_reader_takes_every_framing() -> None:
    """Length, chunks with extensions and trailers, no body, an interim answer and the end of the stream all delimit."""
    answers = read(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello"
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;x=y\r\nhello\r\nA\r\n, world...\r\n0\r\nTrailer: 1\r\n\r\n"
        b"HTTP/1.1 204 No Content\r\n\r\n"
        b"HTTP/1.1 404 Not Found\r\n\r\nuntil the end"
    )
    assert [answer.body for answer in answers] == [b"hello", b"hello, world...", b"", b"until the end"]
    assert [answer.status for answer in answers] == [200, 200, 204, 404]
    assert [answer.closes for answer in answers] == [False, False, False, True]
    assert answers[0].headers["x-a"] == "1, 2"
    assert answers[3].reason == "Not Found"


def test_a_whole_answer_before_a_reset_is_still_an_answer() -> None:
    """Bytes that came are read before the reset that followed them is told."""
    assert [answer.body for answer in read(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", with_reset=True)] == [
        b"ok"
    ]


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", Kind.CLOSED),
        (b"HTTP/1.1 200 OK\r\ncontent-le", Kind.CUT),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", Kind.CUT),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", Kind.CUT),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n", Kind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", Kind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n", Kind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello", Kind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", Kind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", Kind.MALFORMED),
        (b"HTTP/2 200\r\n\r\n", Kind.MALFORMED),
        (b"HTTP/1.1 20x OK\r\n\r\n", Kind.MALFORMED),
    ],
)
def test_the_reader_forgives_nothing(raw: bytes, kind: Kind) -> None:
    """An answer that is short, or that could be read in two ways, is broken."""
    with pytest.raises(BrokenError) as broken:
        read(raw)
    assert broken.value.kind is kind


def test_a_mix_scales_and_keeps_every_class() -> None:
    """Scaling multiplies, leaves no class without a client, and brings none in that was left out."""
    assert Mix().scaled(3).busy == 3 * Mix().busy
    assert all(count == 1 for count in Mix().scaled(0.01).counts().values())
    assert sum(NOBODY.scaled(9).counts().values()) == 0
    with pytest.raises(ValueError, match="cannot be negative"):
        Mix(busy=-1)


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
def test_the_command_reports_when_it_is_told_to_stop(number: signal.Signals, tmp_path: Path) -> None:
    """A signal ends the load, not the account: the file holds every request, and the exit status is 0."""
    out = tmp_path / "report.json"

    async def scene() -> tuple[int | None, str]:
        async with listening(Model().talk) as port:
            process = await command(LOCAL, str(port), "--seconds", "0", "--json", str(out))
            assert process.stderr is not None
            line = (await process.stderr.readline()).decode()
            process.send_signal(number)
            await process.communicate()
            return process.returncode, line

    status, line = asyncio.run(asyncio.wait_for(scene(), 15))
    report = Report.model_validate_json(out.read_text())
    assert line.startswith("1 s: sent ")
    assert ", lost 0, in flight " in line
    assert (status, report.lost) == (0, 0)
    assert report.sent == report.ok > 0


def test_the_command_fails_when_something_was_lost() -> None:
    """Losses make the exit status 1, and stdout holds one JSON document."""

    async def scene() -> tuple[int | None, bytes]:
        async with listening(Fails().talk) as port:
            process = await command(f"{LOCAL}:{port}", "--seconds", "0.3", "--json")
            out, _ = await process.communicate()
            return process.returncode, out

    status, out = asyncio.run(asyncio.wait_for(scene(), 15))
    assert status == 1
    assert Report.model_validate_json(out).lost > 0
