"""Target: the bytes of a connection, read by the parser and, during a canary, by what picks the side of a request."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.contract.canary_file import Canary, CanaryFile
from tests.fuzz.logged import no_logged_errors
from tests.fuzz.mutation import mutate
from tests.fuzz.target import Run, Target
from tests.server_fixtures import App, Host, Message, Receive, Send, running_host

__all__ = ["HEADS"]

TIMEOUT = 0.3  # seconds for an answer to what may not be a whole request

SEEDS = (
    b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /hello HTTP/1.1\r\nHost: x\r\nX-GLM-Slot: candidate\r\nAuthorization: Bearer a\r\n\r\n",
    b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST /upload HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n",
    b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


class _Echo(App):
    """Answers every request with the length of its body."""

    async def _answer(self, path: str, receive: Receive, send: Send) -> None:
        length, more = 0, True
        while more:
            message = await receive()
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        body = str(length).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def _start(directory: Path) -> Iterator[Run]:
    """Two slots with a canary between them; each input is sent on a connection of its own, in pieces."""
    root, runtime = directory / "root", directory / "run"
    with asyncio.Runner() as runner:
        context = running_host(root, runtime, app=_Echo, head_timeout=1.0)
        for path in (root, runtime):
            path.mkdir()
        host = runner.run(context.__aenter__())
        CanaryFile(runtime).write(Canary(slot="green", weight=50, step=1, sticky="authorization"))
        for slot in host.slots:
            slot.tick()
        errors: list[Message] = []
        runner.get_loop().set_exception_handler(lambda _, context: errors.append(context))

        def read(data: bytes) -> None:
            with no_logged_errors():
                runner.run(_exchange(host, data))
            if errors:
                raise AssertionError(errors[0]["message"]) from errors[0].get("exception")

        yield read
        runner.run(context.__aexit__(None, None, None))


async def _exchange(host: Host, data: bytes) -> None:
    reader, writer = await asyncio.open_connection(*host.listener.getsockname())
    pieces = random.Random(zlib.crc32(data))
    answer = b""
    with suppress(OSError):  # the server has closed the connection; or it waits for more, until TIMEOUT
        while data:
            size = pieces.choice((1, 7, 100, len(data)))
            writer.write(data[:size])
            data = data[size:]
            if len(data) < 1000:  # else the pieces would take longer than the reading
                await asyncio.sleep(0)
        await writer.drain()
        writer.write_eof()
        async with asyncio.timeout(TIMEOUT):
            answer = await reader.read(1 << 20)
    writer.transport.abort()
    assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:100]
    async with asyncio.timeout(10):
        while any(slot.connections for slot in host.slots):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def _generate(random: random.Random, max_size: int) -> bytes:
    return mutate(random, SEEDS, max_size)


HEADS: Target = Target("heads", _start, _generate, seconds=1.0, mebibytes=32)
