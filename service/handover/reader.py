"""HTTP/1.x on one connection: reads one request at a time, and limits what its client may send."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NoReturn

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.handover.half_close import BegunAnswer, is_reset
from service.handover.inbox import Inbox, ReadFlow
from service.handover.read_rate import ReadRate
from service.handover.turns import Turns
from service.settings import Settings

__all__ = ["RequestReader"]

_READ_SIZE = 1 << 16  # bytes that are read at once
_READ_AHEAD = 1 << 16  # bytes that wait for the parser while more is read, since only reading shows a disconnect
_SLICE = 1 << 12  # bytes of chunks that are parsed at once
_MAX_EMPTY = 1 << 10  # bytes of empty lines before a request
_MIN_CHUNK = 64  # bytes, on average, of a body with more than _FREE_CHUNKS chunks: each takes as long to parse as these
_FREE_CHUNKS = 4096
_MAX_LINGERING = 1 << 18  # bytes that are read and dropped behind an error
LINGER = 1.0  # seconds
_RESET_PERIOD = 0.05  # seconds
_UPGRADE = 0  # the status of a head that is parsed again


class RequestReader(HttpToolsProtocol):
    """Uvicorn's protocol, which would parse everything that it has read.

    Three counts change independently: requests begun, received completely, and answered. A head is parsed when it is
    whole and the request before it was answered. Until then it stays in the inbox; when that is full, in the kernel.

    A wish for another protocol (`Upgrade`) is ignored. A client that closes its half of the connection behind a whole
    request is answered.
    """

    flow: ReadFlow

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        settings: Settings,
        turns: Turns,
        read_rate: ReadRate,
        address: str,
    ) -> None:
        super().__init__(config, server_state, {})
        self.settings = settings
        self.address = address  # of the client, without its port
        self._turns = turns
        self._read_rate = read_rate
        self.begun = self.received = self.answered = 0
        self._inbox = Inbox()
        self._has_partial_head = False  # the next request has begun, and its head is not whole
        self._is_queued = False  # for its turn
        self._is_half_closed = False
        self._is_lingering = False  # an error was sent, and what still comes is not looked at
        self._body_left: int | None = None  # bytes; -1: chunked; None: not known yet
        self._part = 0  # bytes of the body in the piece that is being parsed
        self._chunks = self._chunked = 0  # number and bytes of a body's chunks
        self._unreported = 0  # bytes of a chunked body that were parsed since the last report of a part of it
        self._empty = 0  # bytes of empty lines since the last request
        self._lingered = 0  # bytes
        self._error = 400

    @property
    def in_flight(self) -> int:
        """The number of requests that were begun and have not ended."""
        return self.begun - self.answered

    @property
    def is_idle(self) -> bool:
        """Whether every request that was begun has been received and answered."""
        return self.begun == self.received == self.answered

    # for the subclasses

    def begin(self) -> None:
        """Count a request at its first byte."""
        self.begun += 1

    def answers_next(self) -> bool:
        """Return whether the next request, whose head begins the inbox, is answered by this process, now."""
        return True

    def refuse(self, status: int, reason: str | None = None) -> None:
        """Answer with an error, and close the connection. `reason`, for the log, says more than the status does."""
        raise NotImplementedError

    def close_after(self, answer: bytes) -> None:
        """Send the last answer. The connection is closed when the client has closed it, or after a while.

        Otherwise a client that is still sending would be reset, and might not read the answer.
        """
        self._inbox.clear()
        self._is_lingering = True
        if self.cycle and not self.cycle.response_complete:  # the application sees a disconnect
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(answer)
        with suppress(OSError):  # the client has reset the connection, which the transport reports later
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)

    # called by the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection."""
        super().connection_made(transport)
        transport.max_size = _READ_SIZE  # type: ignore[attr-defined]  # asyncio's own is 256 KiB
        self.flow = ReadFlow(transport)

    def data_received(self, data: bytes) -> None:
        """Parse the data, as far as its turn has come."""
        if self._is_lingering:
            self._lingered += len(data)
            if self._lingered > _MAX_LINGERING:
                self.flow.pause_reading("lingering")
            return
        if self.address and (pause := self._read_rate.spend(self.address, len(data))):
            self.flow.pause_reading("rate")
            self.loop.call_later(pause, self.flow.resume_reading, "rate")
        self._inbox.add(data)
        self.proceed()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer what was requested; return True, because `_close_if_done` closes the connection."""
        self._is_half_closed = True
        if self.received > self.answered and not self._is_lingering:
            if not self.cycle.response_started:
                self.cycle.transport = BegunAnswer(self.transport)  # type: ignore[assignment]
            self._look_for_reset()
        self._close_if_done()
        return True

    # one request after another

    def proceed_in_turn(self) -> None:
        """Proceed when it is this connection's turn: a client that pipelines sends without waiting for answers."""
        if self._inbox:
            self._queue()
        else:
            self._close_if_done()

    @property
    def _is_in_body(self) -> bool:
        return self.begun > self.received and not self._has_partial_head

    def proceed(self) -> None:
        """Parse what was read: no further than one request behind the last answered one, and no more than a slice."""
        while self._inbox and self.answered >= self.received and not self._is_queued:
            if self.transport.is_closing():
                return
            if self._is_in_body:
                if not self._parse_body():
                    break
            elif not self._begin_next():
                break
        if len(self._inbox) > _READ_AHEAD:
            self.flow.pause_reading("inbox")
        else:
            self.flow.resume_reading("inbox")
        self._close_if_done()

    def _begin_next(self) -> bool:
        """Parse the head of the next request. Returns False if it is not whole, or not answered here."""
        inbox, settings = self._inbox, self.settings
        self._empty += inbox.skip_empty_lines()
        if self._empty > _MAX_EMPTY:
            self.refuse(400, "too many empty lines before a request")
        if not inbox:
            return False
        size = inbox.head_size
        if size is None and not self._has_partial_head:
            self.begin()
            self._has_partial_head = True
        if (len(inbox) if size is None else size) > settings.max_head:
            self.refuse(414 if inbox.url_size > settings.max_url else 431)
        elif size is not None and self.answers_next():
            self._parse(inbox.take(size))
            return True
        return False

    def _parse_body(self) -> bool:
        """Parse the next part of a body. Returns False if its rest has to wait for its turn."""
        if self._body_left is None:
            self._body_left = next((int(value) for name, value in self.headers if name == b"content-length"), -1)
            self.headers = []  # of trailers, which the application does not get
            if self._body_left < 0:
                self._parse_slice()
                return True
        if self._body_left < 0:
            self._queue()
            return False
        piece = self._inbox.take(self._body_left)
        self._body_left -= len(piece)
        self._parse(piece)
        return bool(piece)

    def _parse_slice(self) -> None:
        self._parse(self._inbox.take_chunks(_SLICE))
        self.headers.clear()

    def _queue(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._turns.add(self.address, self._take_turn)

    def _take_turn(self) -> None:
        self._is_queued = False
        if self._inbox and self._is_in_body and not self.transport.is_closing() and not self._is_lingering:
            self._parse_slice()
        self.proceed()

    def _parse(self, piece: bytes) -> None:
        """Parse a whole head, or a part of a body."""
        self._unreported += len(piece)
        self._part = 0
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserError as error:
            if self._error == _UPGRADE:
                self._error = 400
                self._parse_without_upgrade(piece)
            else:
                self.refuse(self._error, None if isinstance(error, httptools.HttpParserCallbackError) else str(error))
            return
        if self._part:
            self._end_part()
        if self.begun > self.received:
            if self._unreported > self.settings.max_head:  # trailers, or a chunk's extension
                self.refuse(431)
            elif self._chunks > _FREE_CHUNKS and self._chunked < _MIN_CHUNK * self._chunks:
                self.refuse(400, "the chunks of the body are too small")

    def _parse_without_upgrade(self, head: bytes) -> None:
        """Parse a head again without its Upgrade header. The parser would take the body for another protocol's data."""
        lines = (line for line in head.splitlines(keepends=True) if not line.lower().startswith(b"upgrade:"))
        self.parser = httptools.HttpRequestParser(self)
        self._has_partial_head = True  # it was counted
        self._parse(b"".join(lines))

    def _close_if_done(self) -> None:
        """Close a half-closed connection when all that was requested is answered."""
        if self._is_half_closed and (self._is_lingering or (self.answered >= self.received and not self._is_queued)):
            self.transport.close()

    def _look_for_reset(self) -> None:
        if not self.transport.is_closing():
            if is_reset(self.transport):
                self.transport.abort()
            else:
                self.loop.call_later(_RESET_PERIOD, self._look_for_reset)

    # called by the parser

    def on_message_begin(self) -> None:
        """Count a request, unless its first byte was counted before its head was whole."""
        if self._has_partial_head:
            self._has_partial_head = False
        else:
            self.begin()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Reject a head that is too large, else begin to answer."""
        if self.parser.should_upgrade():
            self._reject(400 if self.parser.get_method() == b"CONNECT" else _UPGRADE)
        if len(self.url) > self.settings.max_url:
            self._reject(414)
        if len(self.headers) > self.settings.max_headers:
            self._reject(431)
        self._body_left = None
        self._unreported = self._empty = self._chunks = self._chunked = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Add to the request's body, of which there may be thousands of parts: `_end_part` does the rest for many."""
        self._part += len(body)
        self._chunks += 1
        if not self.cycle.response_complete:
            self.cycle.body += body

    def _end_part(self) -> None:
        """Let the application receive what was added to the body."""
        self._unreported = 0
        self._chunked += self._part
        if self.cycle.response_complete:
            return
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Count a request that was received completely."""
        super().on_message_complete()
        self.received += 1

    def _reject(self, status: int) -> NoReturn:
        """End the parsing."""
        self._error = status
        raise ValueError(status)
