"""One client connection, byte for byte, and the reader of the answers that come over it.

No HTTP library stands here on purpose. Libraries retry on a stale connection, reopen a closed one and forgive a byte
too many, and each of these hides exactly what a zero-loss claim has to show.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

HEAD_LIMIT = 64 * 1024
BODY_LIMIT = 64 * 1024 * 1024


class Kind(StrEnum):
    """The ways in which a request can be lost."""

    REFUSED = "refused"
    """No connection could be opened."""
    RESET = "reset"
    """The connection was reset while a request was out."""
    CLOSED = "closed"
    """The connection ended before the first byte of the answer."""
    CUT = "cut"
    """The answer began and did not come to its end."""
    IDLE = "idle-close"
    """The connection was ended while the client was silent: its next request would have met a reset."""
    EARLY = "early"
    """Something came before the request had been sent whole."""
    EXTRA = "extra"
    """Bytes came that no request had asked for."""
    MALFORMED = "malformed"
    """What came is not HTTP/1.1, or the body is not what such an answer holds."""
    STATUS = "status"
    """A whole answer with another status than 200."""
    HEADER = "header"
    """A header that every answer must carry is missing."""
    MIXED = "mixed"
    """Parts of one answer, or two answers that must be equal, come from different models."""
    TIMEOUT = "timeout"
    """No whole answer within the time limit."""


class BrokenError(Exception):
    """A request is lost: `kind` is how, `came` is what came instead of its answer."""

    def __init__(self, kind: Kind, came: str) -> None:
        super().__init__(f"{kind}: {came}")
        self.kind = kind
        self.came = came


class Wire(asyncio.Protocol):
    """One TCP connection to the server.

    A protocol rather than a StreamReader: that one forgets the bytes it holds once a reset comes, so a whole answer
    followed by a reset would look like no answer at all.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._end: str | None = None
        self._reset = False
        self._waiter: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._taken = 0
        self.longest_wait = 0.0

    @classmethod
    async def connect(cls, address: tuple[str, int]) -> Wire:
        """Open a connection; raises BrokenError when the server does not take it."""
        began = time.monotonic()
        try:
            _, wire = await asyncio.get_running_loop().create_connection(cls, *address)
        except ConnectionRefusedError:
            raise BrokenError(Kind.REFUSED, "connection refused") from None
        except OSError as error:
            raise BrokenError(Kind.REFUSED, f"cannot connect: {error.strerror or error}") from None
        wire.longest_wait = time.monotonic() - began
        return wire

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep the bytes until a reader takes them."""
        self._buffer += data
        self.wake()

    def eof_received(self) -> None:
        """Note the peer's FIN; asyncio then closes our side too."""
        self._end = self._end or "end of stream"
        self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note a reset, and tell whoever waits."""
        if exc is not None and self._end is None:
            self._reset = True
            self._end = "reset" if isinstance(exc, ConnectionError) else f"{type(exc).__name__}: {exc}"
        self._end = self._end or "closed"
        self._gone.set_result(None)
        self.wake()

    # What a client calls.

    @property
    def quiet(self) -> bool:
        """Whether the connection is open and holds nothing unread."""
        return self._end is None and not self._buffer

    @property
    def held(self) -> int:
        """Bytes of the present answer that have come so far."""
        return self._taken + len(self._buffer)

    def expect_quiet(self) -> None:
        """Raise BrokenError unless the connection is fit for another request."""
        if self._buffer:
            raise BrokenError(
                Kind.EXTRA, f"{len(self._buffer)} bytes that nobody asked for: {bytes(self._buffer[:60])!r}"
            )
        if self._end is not None:
            raise BrokenError(Kind.IDLE, f"{self._end} while idle")

    async def expect_end(self) -> None:
        """Wait for the peer's FIN; raises BrokenError when anything else comes."""
        if rest := await self.take_rest():
            raise BrokenError(Kind.EXTRA, f"{len(rest)} bytes after a whole answer: {rest[:60]!r}")

    def send(self, data: bytes) -> None:
        """Write; a connection that has ended shows in the next read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def wake(self) -> None:
        """End a wait: something happened here, or the load is stopping."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def rest(self, seconds: float) -> None:
        """Stay silent for that long, or until the peer does something or `wake` is called."""
        if self.quiet:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wait()

    async def close(self) -> None:
        """Close from our side: a FIN, unless bytes of ours are still stuck."""
        if self._transport is not None and not self._transport.is_closing():
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            self._transport.close()
        await self._gone

    # What the answer reader calls.

    def begin(self) -> None:
        """Count the bytes of a new answer from here."""
        self._taken = 0

    async def take_until(self, mark: bytes, limit: int) -> bytes:
        """The bytes before `mark`, which is taken too."""
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > limit:
                raise BrokenError(Kind.MALFORMED, f"no {mark!r} in {limit} bytes: {bytes(self._buffer[:60])!r}")
            await self._grow()
        return self._take(at + len(mark))[:at]

    async def take(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        while len(self._buffer) < size:
            await self._grow()
        return self._take(size)

    async def take_rest(self) -> bytes:
        """Everything up to the peer's FIN."""
        await self._wait_until(lambda: self._end is not None)
        if self._reset:
            raise self._broken()
        return self._take(len(self._buffer))

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._taken += size
        return data

    async def _grow(self) -> None:
        size = len(self._buffer)
        await self._wait_until(lambda: len(self._buffer) > size or self._end is not None)
        if len(self._buffer) == size:
            raise self._broken()

    def _broken(self) -> BrokenError:
        came = f"{self._end} after {self.held} bytes of the answer"
        if self._reset:
            return BrokenError(Kind.RESET, came)
        return BrokenError(Kind.CUT if self.held else Kind.CLOSED, came)

    async def _wait_until(self, done: Callable[[], bool]) -> None:
        began = time.monotonic()
        try:
            while not done():
                await self._wait()
        finally:
            self.longest_wait = max(self.longest_wait, time.monotonic() - began)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response; header names are lower case, repeated ones joined by a comma."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    closes: bool
    """Whether the server said, or HTTP implies, that it closes the connection after this answer."""


async def read_answer(wire: Wire) -> Answer:
    """Read one response to its exact end; raises BrokenError when it has none."""
    while True:
        wire.begin()
        head = await wire.take_until(b"\r\n\r\n", HEAD_LIMIT)
        http11, status, reason, headers = _parse_head(head)
        if status >= 200:
            break
    tokens = {token.strip().lower() for token in headers.get("connection", "").split(",")}
    closes = "close" in tokens or (not http11 and "keep-alive" not in tokens)
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None and length is not None:
        raise BrokenError(Kind.MALFORMED, "both content-length and transfer-encoding")
    if status in (204, 304):
        body = b""
    elif coding is not None:
        if coding.lower() != "chunked":
            raise BrokenError(Kind.MALFORMED, f"transfer-encoding {coding!r}")
        body = await _read_chunks(wire)
    elif length is not None:
        body = await wire.take(_size(length, 10))
    else:
        body, closes = await wire.take_rest(), True
    return Answer(status, reason, headers, body, closes)


def _parse_head(head: bytes) -> tuple[bool, int, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    protocol, _, rest = first.partition(" ")
    code, _, reason = rest.partition(" ")
    if protocol not in ("HTTP/1.1", "HTTP/1.0") or not (len(code) == 3 and code.isascii() and code.isdigit()):
        raise BrokenError(Kind.MALFORMED, f"status line {first[:60]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BrokenError(Kind.MALFORMED, f"header line {line[:60]!r}")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return protocol == "HTTP/1.1", int(code), reason, headers


async def _read_chunks(wire: Wire) -> bytes:
    chunks: list[bytes] = []
    while size := _size((await wire.take_until(b"\r\n", 1024)).decode("latin-1").partition(";")[0].strip(), 16):
        chunk = await wire.take(size + 2)
        if not chunk.endswith(b"\r\n"):
            raise BrokenError(Kind.MALFORMED, f"chunk of {size} bytes does not end where it says")
        chunks.append(chunk[:-2])
    while await wire.take_until(b"\r\n", HEAD_LIMIT):
        pass  # trailers
    return b"".join(chunks)


def _size(text: str, base: int) -> int:
    digits = "0123456789abcdef"[:base]
    if not text or text.lower().strip(digits) or (size := int(text, base)) > BODY_LIMIT:
        raise BrokenError(Kind.MALFORMED, f"size {text[:40]!r}")
    return size
