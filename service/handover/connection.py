"""A connection that can be passed to another process between two requests, or with the head of one."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol

from uvicorn.config import Config
from uvicorn.server import ServerState

from service.handover.fd_passing import Outcome
from service.handover.protocol import RequestProtocol, RequestServer
from service.routing.canary import Side, has_whole_head
from service.routing.ownership import Gate

__all__ = ["Connection", "ConnectionServer"]

_READ_SIZE = 65536  # bytes
_RETRY_DELAY = 0.01  # seconds until another attempt after TRY_AGAIN, or while a response is still in the write buffer


class ConnectionServer(RequestServer, Protocol):
    """The server, as its connections use it."""

    clients: set[Connection]
    """The client connections, without those of the slot's internal socket."""
    gate: Gate

    @property
    def answers_all(self) -> bool:
        """Whether every request of a client is answered here."""

    def keeps(self, connection: Connection) -> bool:
        """Return whether the connection's next request is answered here."""

    def move(self, connection: Connection) -> None:
        """Pass the connection to its owner, or shut it down if it has none and this worker leaves."""

    def pass_on(self, client: socket.socket, side: Side, unread: bytes = b"") -> Outcome:
        """Send a client's connection to the side's owner, with the bytes that were read from it and not answered."""


class Connection(RequestProtocol):
    """An HTTP/1.x connection whose next request may be answered by another process.

    The connection is between requests only if each was received and answered, and the write buffer is empty. Then no
    byte of a request was read that the next owner would miss, and no byte of a response is still to be sent.

    During a canary a request is held until its head is complete, because the head may decide the side. It is counted
    from its first byte on; if it is passed on, the next owner counts it.

    `adopted`: it was received from another process, with the bytes `unread`, which were read from it there.
    """

    slot_server: ConnectionServer

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        slot_server: ConnectionServer,
        *,
        public: bool,
        adopted: bool = False,
        unread: bytes = b"",
    ) -> None:
        super().__init__(config, server_state, slot_server, public=public)
        self.adopted = adopted
        self.side: Side = "live"
        """The side that answers the next request, picked once for each: a receiver keeps the sender's choice."""
        self._held = bytearray(unread)

    @property
    def is_between_requests(self) -> bool:
        """Whether the connection can be passed to another process now."""
        return (
            self.is_idle
            and not self._held
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
        )

    def move(self) -> Outcome | None:
        """Pass the connection to its owner; returns None, and does nothing, unless it is between requests.

        Reading is paused first, so that what the client sends meanwhile stays in the kernel for the next owner.
        """
        if not self.is_between_requests:
            return None
        self.transport.pause_reading()
        outcome = self.slot_server.pass_on(self.transport.get_extra_info("socket"), self.side)
        if outcome is Outcome.SENT:
            if self.public:
                self.slot_server.ledger.handed_out += 1
            self.transport.close()
        else:
            self.transport.resume_reading()
        return outcome

    def shutdown(self) -> None:
        """Close the connection if it is idle; else the response in flight gets "Connection: close"."""
        if self._held:
            self._release()
        super().shutdown()

    # called by the transport and the parser

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Register the connection, and pick its side."""
        super().connection_made(transport)
        if self.public:
            self.slot_server.clients.add(self)
        if self.adopted:
            self.side = self.slot_server.gate.own_side
        else:
            self._pick_side()
        if self._held:
            self._hold()
            self._release()
        elif self.adopted and self.slot_server.keeps(self):
            self._read_at_once()

    def _read_at_once(self) -> None:
        """Read what the client has sent already, because the event loop would read it milliseconds later when busy."""
        try:
            data = os.read(self.transport.get_extra_info("socket").fileno(), _READ_SIZE)
        except OSError:  # no data yet, or a broken connection, which the transport reports later
            return
        if data:
            self.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._held.clear()
        self.slot_server.clients.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data. During a canary, the head of a request is inspected first, because it may decide the side.

        A pipelined request is not inspected: it is answered by the side that answers the request before it.
        """
        if not self._held:
            if self.slot_server.answers_all or not self._must_read_head:
                super().data_received(data)
                return
            data = data.lstrip(b"\r\n")  # as the parser does: they are no part of a request
            if not data:
                return
            self._hold()
        self._held += data
        is_request = self._held[:1].isupper()  # it begins with a method
        if is_request and has_whole_head(self._held):
            if self.transport.is_reading():
                self._answer_or_pass_on()
            # else it waits to be passed on: Python 3.11 reads after a pause in connection_made
        elif not is_request or len(self._held) > self.slot_server.settings.max_head:
            self._release()  # no HTTP, or too large a head: the parser decides

    def _hold(self) -> None:
        """Count the request whose first bytes are held."""
        self._begin()
        self._is_counted = True

    def _answer_or_pass_on(self) -> None:
        side = self.slot_server.gate.side_by_head(self._held)
        self.side = side or self.side
        if side is None or self.slot_server.keeps(self):
            self._release()
        else:
            self.transport.pause_reading()
            self._pass_on_held()

    def _pass_on_held(self) -> None:
        """Pass the connection on with the request that was read from it; without a receiver, answer it here."""
        if self.transport.is_closing() or not self._held:
            return
        client, outcome = self.transport.get_extra_info("socket"), Outcome.TRY_AGAIN
        if self.transport.get_write_buffer_size() == 0:
            outcome = self.slot_server.pass_on(client, self.side, bytes(self._held))
        if outcome is Outcome.TRY_AGAIN:
            self.loop.call_later(_RETRY_DELAY, self._pass_on_held)
        elif outcome is Outcome.SENT:
            self.slot_server.ledger.handed_out += 1
            self._held.clear()
            self._take_back()
            self.transport.close()
        else:
            self._release()

    def _release(self) -> None:
        """Parse the held bytes, to answer their request here."""
        data = bytes(self._held)
        self._held.clear()
        if not self.transport.is_reading():
            self.transport.resume_reading()
        super().data_received(data)

    def on_message_complete(self) -> None:
        """Move the connection if the request was answered before its last byte came."""
        super().on_message_complete()
        if self.answered == self.received:
            self._move_unless_kept()

    def on_response_complete(self) -> None:
        """Pick the side of the next request."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._pick_side()

    @property
    def _must_read_head(self) -> bool:
        """Whether the head of the next request may decide its side."""
        return self.public and self.is_idle and self.slot_server.gate.reads_heads

    def _pick_side(self) -> None:
        if not self.public or self.slot_server.answers_all:
            self.side = "live"
            return
        self.side = self.slot_server.gate.pick_side()
        self._move_unless_kept()

    def _move_unless_kept(self) -> None:
        if self.public and not self.slot_server.keeps(self):
            self.loop.call_soon(self.slot_server.move, self)
