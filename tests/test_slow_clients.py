"""What a client may send, and how long it may take: one that stalls counts as an abort, and holds up nothing."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.contract.worker_state import Ledger
from service.handover import protocol, reader
from tests.box import Box
from tests.server_fixtures import GET, LARGE, PINNED, SLOW, Host, running_host, until

HEAD_TIMEOUT = 0.15  # seconds
UPLOAD = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
CHUNKED = b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of both servers that differ from the defaults."""
    return {"head_timeout": HEAD_TIMEOUT, **getattr(request, "param", {})}


@pytest.fixture
async def host(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Host]:
    monkeypatch.setattr(protocol, "BODY_PAUSE", HEAD_TIMEOUT)
    monkeypatch.setattr(reader, "LINGER", HEAD_TIMEOUT)
    async with running_host(tmp_path, tmp_path_factory.mktemp("run"), **settings) as host:
        yield host


@pytest.fixture(params=["live", "canary"])
def canary(request: pytest.FixtureRequest, host: Host) -> None:
    """With and without a canary, during which heads are held."""
    if request.param == "canary":
        (host.runtime / "canary").write_text(json.dumps({"slot": "green", "weight": 0}))


async def past_timeouts() -> None:
    await asyncio.sleep(3 * HEAD_TIMEOUT)


@pytest.mark.anyio
@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("sent", [1, 2, 20, len(PINNED) - 1])
@pytest.mark.usefixtures("canary")
async def test_head_that_stalls_is_the_abort_of_its_client(host: Host, sent: int, earlier: int) -> None:
    """Wherever a head stops, also after answered requests, the client gets a 408 and a close, and has aborted."""
    client = await host.client()
    for _ in range(earlier):
        assert (await client.ask()).status == 200
    client.send(PINNED[:sent])
    await until(lambda: host.blue.ledger.accepted == earlier + 1, "the first byte")
    assert host.blue.connections[0].in_flight == 1
    reply = await client.reply()
    assert (reply.status, reply.headers["connection"]) == (408, "close")
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger(accepted=earlier + 1, completed=earlier, client_aborted=1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "start", [UPLOAD, UPLOAD + b"x" * 99, CHUNKED, CHUNKED + b"5\r\nab", CHUNKED + b"2\r\nab\r\n0\r\n"]
)
async def test_body_that_stalls_is_the_abort_of_its_client(host: Host, start: bytes) -> None:
    """Wherever a body stops, the client gets a 408, and the application sees a disconnect."""
    client = await host.client()
    client.send(start)
    assert (await client.reply()).status == 408
    assert await client.rest() == b""
    await until(lambda: host.blue.app.running == 0, "the end of the application")
    assert host.blue.ledger == Ledger(accepted=1, client_aborted=1)


@pytest.mark.anyio
async def test_body_that_stalls_behind_the_beginning_of_its_answer_is_closed(host: Host) -> None:
    """Nothing can be answered then: the connection is closed."""
    client = await host.client()
    client.send(b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
    await client.first_part()
    assert await client.rest() == b""
    host.blue.app.proceed.set()
    assert host.blue.ledger == Ledger(accepted=1, client_aborted=1)


@pytest.mark.anyio
async def test_upload_that_was_answered_early_and_stalls_is_closed(host: Host) -> None:
    """It has been counted: its connection is closed, so that no cutover waits for it."""
    client = await host.client()
    assert (await client.ask(b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")).status == 200
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger(accepted=1, completed=1)


@pytest.mark.anyio
@pytest.mark.parametrize(("size", "status"), [(50, 200), (1, 408)])
@pytest.mark.parametrize("settings", [{"body_rate": 1000}], indirect=True)
async def test_body_has_a_minimum_rate(host: Host, size: int, status: int) -> None:
    """A body may be slow, as long as its bytes come at the minimum rate on average."""
    client = await host.client()
    length = 30 * size
    client.send(f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
    for _ in range(30):  # 0.6 seconds, four times as long as it may pause
        if host.blue.connections:
            client.send(b"x" * size)
            await asyncio.sleep(0.02)
    assert (await client.reply()).status == status


@pytest.mark.anyio
@pytest.mark.parametrize("settings", [{"max_read_rate": 1 << 20}], indirect=True)
async def test_no_more_is_read_of_an_address_than_its_rate(host: Host) -> None:
    """By two connections together; neither is blamed for what the server does not read."""
    body = b"x" * (512 << 10)
    request = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    clients = [await host.client(), await host.client()]
    began = time.monotonic()
    answers = await asyncio.gather(*(client.ask(request) for client in clients))
    assert [answer.status for answer in answers] == [200, 200]
    assert time.monotonic() - began > 0.5  # a mebibyte at one a second, but for a burst of a quarter and two reads


@pytest.mark.anyio
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("settings", [{"read_timeout": 3 * HEAD_TIMEOUT}], indirect=True)
async def test_client_that_does_not_read_its_answer_is_disconnected(host: Host, reads: bool) -> None:
    """An answer that waits in the write buffer has a time limit too; one that is read slowly has not."""
    client = await host.client()
    client.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: host.blue.app.running, "the request")
    read = 0
    if reads:
        while chunk := await client.reader.read(1 << 20):
            read += len(chunk)
            if read >= LARGE:
                break
            await asyncio.sleep(0.02)
    await until(lambda: not host.blue.app.running, "the end of the answer")
    assert host.blue.ledger == (Ledger(accepted=1, completed=1) if reads else Ledger(accepted=1, client_aborted=1))


@pytest.mark.anyio
async def test_client_is_not_blamed_for_an_earlier_answer(host: Host) -> None:
    """While a request is answered, the time for the next one on its connection stands still."""
    client = await host.client()
    client.send(SLOW + GET[:10])
    await past_timeouts()
    assert host.blue.ledger == Ledger(accepted=1)
    host.blue.app.proceed.set()
    client.send(GET[10:])
    assert [(await client.reply()).status for _ in range(2)] == [200, 200]


@pytest.mark.anyio
async def test_client_is_not_blamed_for_a_server_that_does_not_read(host: Host) -> None:
    """The time stands still while the application takes no more of the body, and before it asks for it with a 100."""
    client, polite = await host.client(), await host.client()
    client.send(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n" + b"x" * 8_000_000)
    polite.send(b"POST /slow HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 8\r\n\r\n")
    await past_timeouts()
    assert host.blue.ledger == Ledger(accepted=2)
    host.blue.app.proceed.set()
    assert (await client.reply()).status == (await polite.reply()).status == 200


@pytest.mark.anyio
async def test_client_is_not_blamed_for_a_suspended_worker(host: Host) -> None:
    """A worker that was stopped for a minute has not waited for its clients: what they sent is not read yet."""
    client = await host.client()
    client.send(GET[:10])
    await until(lambda: host.blue.ledger.accepted == 1, "the first byte")
    connection = host.blue.connections[0]
    connection._seconds_to_send = 10
    host.blue.server.slow_clients._timed_at -= 60
    host.blue.tick()
    assert connection._seconds_to_send > 8
    assert (await client.ask(GET[10:])).status == 200


@pytest.mark.anyio
@pytest.mark.parametrize("start", [UPLOAD, CHUNKED + b"1\r\na"])
@pytest.mark.usefixtures("canary")
async def test_client_that_stalls_does_not_hold_a_leaving_worker(host: Host, start: bytes) -> None:
    """A worker that leaves waits for the time of a request at most, not for the drain time, and cuts nothing."""
    client = await host.client()
    client.send(start)
    await until(lambda: host.blue.ledger.accepted == 1, "the first byte")
    host.cut_over()
    started = time.monotonic()
    await host.blue.leave()
    assert time.monotonic() - started < 10 * HEAD_TIMEOUT
    assert host.blue.ledger == Ledger(accepted=1, client_aborted=1)
    assert (await client.reply()).status == 408


@pytest.mark.anyio
@pytest.mark.parametrize(
    "garbage",
    [
        *(b"\x16\x03\x01\x02\x00", b"\x00", b"get / HTTP/1.1\r\n", b"\x80abc", b"SSH-2.0-OpenSSH_9.2\r\n", b"GET\r\n"),
        *(b"GET / HTTP/9.7\r\n", b"GET /a b HTTP/1.1\r\nHost", b"GET / HTTP/1.1\nHost: x", b"A" * 50),
    ],
)
@pytest.mark.usefixtures("canary")
async def test_what_is_no_http_is_answered_at_once(host: Host, garbage: bytes) -> None:
    """Also during a canary, which holds heads: these bytes begin none."""
    client = await host.client()
    started = time.monotonic()
    assert (await client.ask(garbage)).status == 400
    assert time.monotonic() - started < HEAD_TIMEOUT
    assert host.blue.ledger == Ledger(accepted=1, completed=1)


@pytest.mark.anyio
@pytest.mark.usefixtures("canary")
async def test_empty_lines_begin_no_request(host: Host) -> None:
    """They are neither counted nor held, and the connection goes on."""
    client = await host.client()
    client.send(b"\r\n\r\n")
    await past_timeouts()
    assert host.blue.ledger == Ledger()
    assert (await client.ask(b"\r\n" + GET)).status == 200
    assert host.blue.ledger == Ledger(accepted=1, completed=1)


@pytest.mark.anyio
async def test_held_request_is_counted_where_it_is_answered(host: Host) -> None:
    """A request that is held counts from its first byte on; the generation that it is passed to counts it instead."""
    (host.runtime / "canary").write_text(json.dumps({"slot": "green", "weight": 0}))
    client = await host.client()
    client.send(PINNED[:5])
    await until(lambda: host.blue.ledger == Ledger(accepted=1), "the first byte")
    host.blue.server.publish_state()
    assert host.blue.state.in_flight == 1
    assert (await client.ask(PINNED[5:])).slot == "green"
    assert (host.blue.ledger.accepted, host.green.ledger.accepted, host.green.ledger.completed) == (0, 1, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("size", [0, 1000, 1 << 16, 1 << 20])
async def test_head_decides_whatever_comes_with_it(host: Host, size: int) -> None:
    """A body may come in one piece with its head: only a head has a limit."""
    (host.runtime / "canary").write_text(json.dumps({"slot": "green", "weight": 0}))
    client = await host.client()
    for slot in ("green", "blue", "green"):
        side = "candidate" if slot == "green" else "live"
        head = f"POST /upload HTTP/1.1\r\nHost: x\r\nX-GLM-Slot: {side}\r\nContent-Length: {size}\r\n\r\n".encode()
        reply = await client.ask(head + b"a" * size)
        assert (reply.status, reply.slot) == (200, slot)


@pytest.mark.anyio
@pytest.mark.parametrize("sent", [1, 30])
async def test_held_request_of_a_client_that_disconnects_is_its_abort(host: Host, sent: int) -> None:
    """A held request cannot vanish from the ledger."""
    (host.runtime / "canary").write_text(json.dumps({"slot": "green", "weight": 0}))
    client = await host.client()
    client.send(PINNED[:sent])
    await until(lambda: host.blue.ledger.accepted == 1, "the first byte")
    client.abort()
    await until(lambda: not host.blue.connections, "the end of the connection")
    assert host.blue.ledger == Ledger(accepted=1, client_aborted=1)


LIMITS = {"max_head": 2048, "max_headers": 20, "max_url": 400, "head_timeout": 5}
TOO_LARGE = {
    "url": (b"GET /" + b"a" * 500 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "query": (b"GET /?" + b"a" * 500 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "url without an end": (b"GET /" + b"a" * 9000, 414),
    "headers": (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 21 + b"\r\n", 431),
    "one header": (b"GET / HTTP/1.1\r\na: " + b"b" * 3000 + b"\r\n\r\n", 431),
    "one header without an end": (b"GET / HTTP/1.1\r\na: " + b"b" * 9000, 431),
    "a name without an end": (b"GET / HTTP/1.1\r\n" + b"b" * 9000, 431),
    "together": (b"GET / HTTP/1.1\r\n" + b"".join(b"a: %b\r\n" % (b"b" * 200) for _ in range(15)) + b"\r\n", 431),
    "trailers": (CHUNKED + b"1\r\na\r\n0\r\n" + b"a: b\r\n" * 100_000, 431),
    "a chunk's extension": (CHUNKED + b"1\r\na\r\n1;" + b"a" * 600_000, 431),
}


@pytest.mark.anyio
@pytest.mark.parametrize("pieces", [1, 2, 40])
@pytest.mark.parametrize("what", TOO_LARGE)
@pytest.mark.parametrize("settings", [LIMITS], indirect=True)
@pytest.mark.usefixtures("canary")
async def test_what_is_too_large_is_refused(
    host: Host, what: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is split: a 414 or 431 and a close, counted once; no more than the limit is kept of it."""
    monkeypatch.setattr(protocol, "BODY_PAUSE", 5)
    data, status = TOO_LARGE[what]
    client = await host.client()
    cuts = sorted(random.Random(what).sample(range(1, len(data)), pieces - 1))
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if host.blue.connections:  # else it was refused already
            client.send(data[begin:end])
            await asyncio.sleep(0.002)
    with suppress(ConnectionError):  # a client that goes on sending may be reset before it reads the answer
        assert (await client.reply()).status == status
        await client.rest()
    await until(lambda: not host.blue.connections and not host.blue.app.running, "the end")
    counted = host.blue.ledger
    assert (counted.accepted, counted.completed) in {(1, 1), (2, 2)}  # the upload was answered before its trailers


@pytest.mark.anyio
@pytest.mark.parametrize("settings", [LIMITS], indirect=True)
@pytest.mark.usefixtures("canary")
async def test_what_is_just_not_too_large_is_answered(host: Host) -> None:
    """The limits themselves are allowed, and bodies, pipelines and many small chunks have none of them."""
    client = await host.client()
    for request in (
        b"GET /" + b"a" * 399 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /hello HTTP/1.1\r\n" + b"a: b\r\n" * 20 + b"\r\n",
        b"GET /hello HTTP/1.1\r\na: " + b"b" * 2000 + b"\r\n\r\n",
        b"POST /upload HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
        CHUNKED + b"1\r\na\r\n" * 3000 + b"0\r\n\r\n",
    ):
        assert (await client.ask(request)).status == 200
    client.send(GET * 200)
    for _ in range(200):
        assert (await client.reply()).status == 200


def test_client_of_one_byte_does_not_hold_a_rollout(box: Box) -> None:
    """The old slot is retired long before the drain time; nothing was lost or cut, and the client gets its 408."""
    box.configure(head_timeout=4)
    box.glmctl("reload")
    host, port = box.listen.split(":")
    with socket.create_connection((host, int(port))) as client:
        client.send(b"G")
        record = box.json("deploy", "1.1.0", "--bake", "0", "--drain", "60s")
        assert record["seconds"] < 30
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")
    receipt = record["receipt"]
    assert (receipt["cut"], receipt["lost"], receipt["adds_up"]) == (0, 0, True)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (b"\x16\x03\x01", "refused with 400: 127.0.0.1 - -: Invalid method encountered"),
        (b"GET /he", "refused with 408: 127.0.0.1 - -: The request took too long to arrive."),
        (UPLOAD, "refused with 408: 127.0.0.1 POST /upload: The request took too long to arrive."),
    ],
)
async def test_what_no_application_sees_is_logged(
    host: Host, sent: bytes, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With address and reason, at the rate of other refusals."""
    client = await host.client()
    client.send(sent)
    await client.reply()
    assert line in caplog.text
