"""How requests are read: one at a time, however their bytes are split and wherever the connection moves meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.worker_state import Ledger
from service.handover import reader, turns
from service.handover.connection import Connection
from service.handover.inbox import Inbox
from tests.server_fixtures import GET, PINNED, SLOW, STREAM, App, Host, Message, Receive, Send, running_host, until

MOST_READ = reader._READ_AHEAD + reader._READ_SIZE  # bytes


class Echo(App):
    """Answers with the method, the path and the body, or before it has read the body if the path is /early."""

    async def _answer(self, path: str, receive: Receive, send: Send) -> None:
        if path in ("/slow", "/stream"):
            await super()._answer(path, receive, send)
            return
        body, more = path.encode() + b" ", path != "/early"
        while more:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        headers = [(b"content-length", str(len(body)).encode()), (b"x-slot", self.slot.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
NAMES = ("plain", "length", "chunks", "early", "upgrade", "upgrade with a body", "upgrade with chunks", "empty lines")


def request(name: str, number: int, body: bytes) -> tuple[bytes, bytes]:
    """Return the bytes of a request, and the body of its answer."""
    path = b"/early" if name == "early" else b"/%d" % number
    upgrade = UPGRADE if "upgrade" in name else b""
    if "chunks" in name:
        cut = len(body) // 2
        pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
        sent = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nTrailer: x\r\n\r\n"
        head = b"Transfer-Encoding: chunked\r\n"
    elif name in ("plain", "upgrade", "empty lines"):
        sent, head, body = b"", b"", b""
    else:
        sent, head = body, b"Content-Length: %d\r\n" % len(body)
    lines = b"\r\n\r\n" if name == "empty lines" else b""
    method = b"POST" if head else b"GET"
    whole = lines + b"%b %b HTTP/1.1\r\nHost: x\r\n%b%b\r\n" % (method, path, upgrade, head) + sent
    return whole, path + b" " + (b"" if name == "early" else body)


bodies = st.binary(max_size=300) | st.sampled_from(
    [b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n" * 9, b"x" * 70_000]
)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.sampled_from(NAMES), bodies), min_size=1, max_size=8),
    cuts=st.lists(st.floats(0, 1), max_size=12),
    moves=st.sets(st.integers(0, 12), max_size=4),
    canary=st.booleans(),
)
def test_requests_are_answered_in_order_however_they_arrive(
    requests: list[tuple[str, bytes]], cuts: list[float], moves: set[int], canary: bool
) -> None:
    """Any requests in any pieces, with cutovers between the pieces: each is answered once, and in order."""
    parts = [request(name, number, body) for number, (name, body) in enumerate(requests)]
    data = b"".join(sent for sent, _ in parts)
    edges = sorted({0, len(data), *(round(cut * len(data)) for cut in cuts)})

    async def scenario(host: Host) -> None:
        if canary:
            (host.runtime / "canary").write_text('{"slot": "green", "weight": 50}')
        client = await host.client()
        for number, (begin, end) in enumerate(itertools.pairwise(edges)):
            client.send(data[begin:end])
            await asyncio.sleep(0.001)
            if number in moves:
                host.go_live("green" if number % 2 else "blue")
                await asyncio.sleep(0.03)
        assert [(await client.reply()).body for _ in parts] == [answer for _, answer in parts]
        assert host.blue.ledger.completed + host.green.ledger.completed == len(parts)

    _run(scenario)


@settings(max_examples=40, deadline=None)
@given(body=st.sampled_from(["length", "chunks"]), upgrade=st.booleans(), pause=st.sampled_from([0, 0.01]))
def test_a_body_is_never_read_as_a_request(body: str, upgrade: bool, pause: float) -> None:
    """Neither with a wish for another protocol: a body that comes later, and looks like a request, is a body."""
    inner = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
    sent, answer = request(f"upgrade with {body}" if upgrade else body, 1, inner)

    async def scenario(host: Host) -> None:
        client = await host.client()
        head = sent.index(b"\r\n\r\n") + 4
        client.send(sent[:head])
        await asyncio.sleep(pause)
        client.send(sent[head:] + GET)
        assert [(await client.reply()).body for _ in range(2)] == [answer, b"/hello "]

    _run(scenario)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def host(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Host]:
    async with running_host(
        tmp_path, tmp_path_factory.mktemp("run"), app=Echo, **getattr(request, "param", {})
    ) as host:
        yield host


@pytest.mark.anyio
@pytest.mark.parametrize("earlier", [SLOW, b""], ids=["behind a slow answer", "at once"])
async def test_a_pipeline_is_read_as_it_is_answered(host: Host, earlier: bytes) -> None:
    """Of 40 MB of requests no more is read than the bound; none is begun before the one ahead of it was answered."""
    client = await host.client()
    [connection] = host.blue.connections
    small = b"GET / HTTP/1.1\r\n\r\n"
    client.send(earlier + small * (40_000_000 // len(small)))
    for _ in range(200):
        await asyncio.sleep(0.001)
        assert len(connection._inbox) <= MOST_READ
        assert connection.in_flight <= 1
    client.abort()
    host.blue.app.proceed.set()
    await until(lambda: not host.blue.connections, "the end of the connection")


@pytest.mark.anyio
@pytest.mark.parametrize("flood", [b"1\r\nx\r\n", b"1;" + b"a" * 500 + b"\r\nx\r\n"], ids=["chunks", "extensions"])
async def test_chunks_are_parsed_in_turns(host: Host, flood: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small its chunks are, an upload is parsed in slices, one after the other with those of other uploads."""
    monkeypatch.setattr(turns, "_SHARE", 0)
    taken: list[tuple[int, int]] = []
    take_chunks = Inbox.take_chunks

    def take(inbox: Inbox, limit: int) -> bytes:
        piece = take_chunks(inbox, limit)
        taken.append((id(inbox), len(piece)))
        return piece

    monkeypatch.setattr(Inbox, "take_chunks", take)
    other, *uploads = [await host.client() for _ in range(4)]
    for upload in uploads:
        upload.send(b"POST /slow HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + flood * (60_000 // len(flood)))
    while len(taken) < 3:  # noqa: ASYNC110  (the first slice of each is parsed at once)
        await asyncio.sleep(0)
    while len(taken) < 20:
        seen = len(taken)
        await asyncio.sleep(0)
        assert len(taken) - seen <= 2  # the loop's iteration in which this task runs, and the next
    assert max(size for _, size in taken) <= 4096
    rounds = [inbox for inbox, _ in taken[6:18]]
    assert all(len(set(rounds[begin : begin + 3])) == 3 for begin in range(0, 12, 3))
    assert (await other.ask()).status == 200
    for upload in uploads:
        upload.abort()
    host.blue.app.proceed.set()


@pytest.mark.anyio
@pytest.mark.parametrize(("size", "status"), [(1, 400), (200, 200)])
async def test_chunks_are_not_too_small_on_average(host: Host, size: int, status: int) -> None:
    """Each takes as long to parse as many bytes; a few thousand may be of any size."""
    client = await host.client()
    chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
    client.send(b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 5000 + b"0\r\n\r\n")
    assert (await client.reply()).status == status


@pytest.mark.anyio
async def test_pipelines_of_an_address_take_turns(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections it has, and however fast they send: one request of theirs is begun after the other."""
    begun: list[int] = []
    answers_next = Connection.answers_next

    def begin(connection: Connection) -> bool:
        begun.append(id(connection))
        return answers_next(connection)

    monkeypatch.setattr(Connection, "answers_next", begin)
    clients = [await host.client() for _ in range(3)]
    for client in clients:
        client.send(GET * 500)
    while len(begun) < 3:  # noqa: ASYNC110  (one iteration of the event loop at a time)
        await asyncio.sleep(0)
    while len(begun) < 60:
        seen = len(begun)
        for client in clients:
            client.send(GET)
        await asyncio.sleep(0)
        assert len(begun) - seen <= 2  # the loop's iteration in which this task runs, and the next
    for client in clients:
        client.abort()


@pytest.mark.anyio
async def test_empty_lines_do_not_go_on_for_ever(host: Host) -> None:
    """A few before a request are ignored, as the parser does."""
    client = await host.client()
    client.send(b"\r\n" * 5000)
    assert (await client.reply()).status == 400


@given(size=st.integers(1, 40), trailers=st.booleans(), data=st.data())
def test_nothing_behind_the_end_of_chunks_is_taken(size: int, trailers: bool, data: st.DataObject) -> None:
    """Wherever the bytes are split, and whatever the chunks hold."""
    content = data.draw(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n\r\n", b"a"]), min_size=size, max_size=size))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in content) + b"0\r\n"
    body = chunks + (b"a: b\r\n" if trailers else b"") + b"\r\n"
    whole = body + GET
    inbox, taken = Inbox(), b""
    for begin, end in itertools.pairwise([0, *sorted(data.draw(st.sets(st.integers(1, len(whole) - 1)))), len(whole)]):
        inbox.add(whole[begin:end])
        while inbox and taken != body:
            taken += inbox.take_chunks(data.draw(st.integers(1, 50)))
            assert body.startswith(taken)
    assert bytes(inbox) == GET


@pytest.mark.anyio
async def test_a_receiver_keeps_the_choice_of_the_sender(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The side of a request is chosen once: a second choice at random would change the canary's share."""
    (host.runtime / "canary").write_text(json.dumps({"slot": "green", "weight": 0, "sticky": "x-user"}))
    client = await host.client()
    inspected: list[bytes] = []
    monkeypatch.setattr(host.green.server.gate, "side_by_head", inspected.append)
    assert (await client.ask(PINNED)).slot == "green"
    assert not inspected


@pytest.mark.anyio
@pytest.mark.parametrize("what", [SLOW, STREAM, GET * 3 + SLOW], ids=["slow", "stream", "pipelined"])
async def test_a_client_that_has_closed_its_half_is_answered(host: Host, what: bytes) -> None:
    """A client may close its side behind its requests, as `nc -N` does."""
    client = await host.client()
    client.send(what)
    client.writer.write_eof()
    await until(lambda: host.blue.app.running, "the request")
    await asyncio.sleep(0.1)
    host.blue.app.proceed.set()
    if what == STREAM:
        assert b"last" in await client.rest()
    else:
        for _ in range(what.count(b"HTTP/1.1")):
            assert (await client.reply()).status == 200
        assert await client.rest() == b""
    await until(lambda: not host.blue.connections, "the end of the connection")
    assert host.blue.ledger.completed == host.blue.ledger.accepted == what.count(b"HTTP/1.1")


@pytest.mark.anyio
@pytest.mark.parametrize("what", [SLOW, STREAM], ids=["slow", "stream"])
async def test_a_client_that_is_gone_is_noticed(host: Host, what: bytes) -> None:
    """A client whose socket is closed sends the same end; it is noticed within a moment, and its work is cancelled."""
    client = await host.client()
    client.send(what)
    await until(lambda: host.blue.app.running, "the request")
    if what == STREAM:
        await client.first_part()
    client.writer.close()
    if what == STREAM:
        host.blue.app.proceed.set()
    await until(lambda: not host.blue.connections, "the end of the connection")
    assert host.blue.ledger.in_flight == 0
    if what == SLOW:
        assert host.blue.ledger == Ledger(accepted=1, client_aborted=1)


@pytest.mark.anyio
@pytest.mark.parametrize("begun", [b"", b"GET /he", b"POST /x HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"])
async def test_a_client_that_closes_its_half_too_early_is_closed(host: Host, begun: bytes) -> None:
    """Without a whole request there is nothing to answer."""
    client = await host.client()
    client.send(begun)
    client.writer.write_eof()
    assert await client.rest() == b""
    assert host.blue.ledger == (Ledger(accepted=1, client_aborted=1) if begun else Ledger())


@pytest.mark.anyio
@pytest.mark.parametrize("host", [{"head_timeout": 60, "read_timeout": 60}], indirect=True)
@pytest.mark.parametrize("what", ["body", "answer"])
@pytest.mark.parametrize("is_alone", [True, False])
async def test_while_others_wait_a_slow_client_is_given_up_early(
    host: Host, what: str, is_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that leaves, with no other to answer, waits a tenth of the time; with another, for as long as before."""
    monkeypatch.setattr("service.handover.protocol._HURRY", 600)
    monkeypatch.setattr(reader, "LINGER", 0.05)
    client = await host.client()
    if what == "body":
        client.send(b"POST /x HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        await until(lambda: host.blue.app.running, "the request")
    else:
        client.send(b"GET /slow HTTP/1.1\r\n\r\n")
        await until(lambda: host.blue.app.running, "the request")
        [connection] = host.blue.connections
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        connection.transport.write(bytes(32 << 20))
    if not is_alone:
        host.cut_over()
    host.blue.server.handle_exit(signal.SIGTERM, None)
    await asyncio.wait({host.blue.task}, timeout=1)
    assert host.blue.task.done() == is_alone
    assert host.blue.ledger == Ledger(accepted=1, client_aborted=int(is_alone))
    client.abort()


def _run(scenario: Any) -> None:
    async def with_host() -> None:
        with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as run:
            async with running_host(Path(root), Path(run), app=Echo) as host:
                await scenario(host)

    asyncio.run(with_host())
