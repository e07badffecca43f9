"""A TCP connection that reports every close, reset and unexpected byte."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from deploy.loadtest.losses import LossKind, RequestLost


class RawConnection(asyncio.Protocol):
    """One TCP connection, without retries or reconnects.

    An HTTP client library retries on a stale connection, reopens a closed one and discards surplus bytes, which hides
    losses. asyncio.StreamReader is not used either: it discards its buffer after a reset, so that a complete response
    followed by a reset would be reported as no response.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._end: str | None = None
        self._reset = False
        self._waiter: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._taken = 0
        self.longest_wait = 0.0
        """Longest wait in seconds for the connection or for more bytes of a response; reset by the client."""

    @classmethod
    async def connect(cls, address: tuple[str, int]) -> RawConnection:
        """Open a connection; raises RequestLost (REFUSED) when that fails."""
        began = time.monotonic()
        try:
            _, connection = await asyncio.get_running_loop().create_connection(cls, *address)
        except ConnectionRefusedError:
            raise RequestLost(LossKind.REFUSED, "connection refused") from None
        except OSError as error:
            raise RequestLost(LossKind.REFUSED, f"cannot connect: {error.strerror or error}") from None
        connection.longest_wait = time.monotonic() - began
        return connection

    # Callbacks of asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Buffer the bytes until they are received by a caller."""
        self._buffer += data
        self.wake()

    def eof_received(self) -> None:
        """Record the FIN of the server; asyncio then closes the connection."""
        self._end = self._end or "end of stream"
        self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Record a reset, unless a FIN came first."""
        if exc is not None and self._end is None:
            self._reset = True
            self._end = "reset" if isinstance(exc, ConnectionError) else f"{type(exc).__name__}: {exc}"
        self._end = self._end or "closed"
        self._closed.set_result(None)
        self.wake()

    # State between requests.

    @property
    def quiet(self) -> bool:
        """Whether the connection is open and no received bytes are buffered."""
        return self._end is None and not self._buffer

    def expect_quiet(self) -> None:
        """Raise RequestLost unless the connection can be used for another request."""
        if self._buffer:
            raise RequestLost(LossKind.EXTRA, f"{len(self._buffer)} unsolicited bytes: {bytes(self._buffer[:60])!r}")
        if self._end is not None:
            raise RequestLost(LossKind.IDLE, f"{self._end} while idle")

    async def expect_end(self) -> None:
        """Wait for the FIN of the server; raises RequestLost on anything else."""
        if data := await self.receive():
            raise RequestLost(LossKind.EXTRA, f"{len(data)} bytes after a complete response: {data[:60]!r}")

    async def idle(self, seconds: float) -> None:
        """Wait that long, or until the server sends or closes, or until `wake` is called."""
        if self.quiet:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wait()

    def wake(self) -> None:
        """End a wait."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Bytes.

    def send(self, data: bytes) -> None:
        """Write; the end of the connection is reported by the next `receive`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def begin_response(self) -> None:
        """Count `response_bytes` from here."""
        self._taken = 0

    @property
    def response_bytes(self) -> int:
        """Bytes of the current response received so far."""
        return self._taken + len(self._buffer)

    async def receive(self) -> bytes:
        """Return all buffered bytes, waiting for at least one; b"" after a FIN. Raises RequestLost (RESET)."""
        await self._wait_until(lambda: bool(self._buffer) or self._end is not None)
        if self._reset and not self._buffer:
            raise self.incomplete_response()
        data = bytes(self._buffer)
        self._buffer.clear()
        self._taken += len(data)
        return data

    def put_back(self, data: bytes) -> None:
        """Return received bytes that belong to the next response."""
        self._buffer[:0] = data
        self._taken -= len(data)

    def incomplete_response(self) -> RequestLost:
        """The loss of the current response by the end of the connection: RESET, CUT or CLOSED."""
        detail = f"{self._end} after {self.response_bytes} bytes of the response"
        if self._reset:
            return RequestLost(LossKind.RESET, detail)
        return RequestLost(LossKind.CUT if self.response_bytes else LossKind.CLOSED, detail)

    async def close(self) -> None:
        """Close with a FIN, or with a reset if written bytes could not be sent yet."""
        if self._transport is not None and not self._transport.is_closing():
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            self._transport.close()
        await self._closed

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
