"""A client connection that counts its requests, and that can be passed to another process between two of them."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.contract.samples import SampleRing
from service.contract.worker_state import Ledger
from service.handover.fd_passing import Outcome
from service.routing.canary import Side, has_whole_head
from service.routing.mirror import Mirror
from service.routing.ownership import Gate
from service.routing.timing import MIRRORED_HEADER, Message, Receive, ResponseTimer, Send

__all__ = ["Connection", "ConnectionServer"]

_READ_SIZE = 65536  # bytes
_RETRY_DELAY = 0.01  # seconds until another attempt after TRY_AGAIN, or while a response is still in the write buffer


class ConnectionServer(Protocol):
    """The server, as its connections use it."""

    clients: set[Connection]
    """The client connections, without those of the slot's internal socket."""
    busy: set[Connection]
    """The client connections with a request in flight."""
    gate: Gate
    samples: SampleRing
    mirror: Mirror

    @property
    def ledger(self) -> Ledger:
        """The counts of this worker."""

    def keeps(self, connection: Connection) -> bool:
        """Return whether the connection's next request is answered here."""

    def move(self, connection: Connection) -> None:
        """Pass the connection to its owner, or shut it down if it has none and this worker leaves."""

    def pass_on(self, client: socket.socket, side: Side, unread: bytes = b"") -> Outcome:
        """Send a client's connection to the side's owner, with the bytes that were read from it and not answered."""


class Connection(HttpToolsProtocol):
    """An HTTP/1.x connection of a client (`public`) or of the slot's internal socket.

    Three counts change independently: requests begun, requests received completely, requests answered. The connection
    is between requests only if all three are equal and the write buffer is empty. Then no byte of a request was read
    that the next owner would miss, and no byte of a response is still to be sent.

    `adopted`: it was received from another process, with the bytes `unread`, which were read from it there.
    """

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
        super().__init__(config, server_state, {})
        self.slot_server = slot_server
        self.public = public
        self.adopted = adopted
        self.side: Side = "live"
        """The side that answers the next request, picked once for each: a receiver keeps the sender's choice."""
        self._held = bytearray(unread)
        self.begun = self.received = self.answered = 0
        self._to_drain = 0
        self._timer: ResponseTimer | None = None
        self._broken_off = self._client_gone = False
        self._application = self.app
        self.app = self._answer

    @property
    def in_flight(self) -> int:
        """The number of requests that were begun and have not ended."""
        return self.begun - self.answered

    @property
    def is_between_requests(self) -> bool:
        """Whether the connection can be passed to another process now."""
        return (
            self._is_idle
            and not self._held
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
        )

    def note_gate_closed(self) -> None:
        """Count the requests in flight as drained once they complete: the generation takes no more requests."""
        self._to_drain = self.in_flight

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

    # called by the transport and the parser

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Register the connection, pick its side, and start the idle timeout."""
        super().connection_made(transport)
        if self.public:
            self.slot_server.clients.add(self)
        if self.adopted:
            self.slot_server.ledger.adopted += 1
            self.side = self.slot_server.gate.own_side
        else:
            self._pick_side()
        self._start_idle_timeout()
        if self._held:
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
        """Count the requests in flight, which will not be answered any more."""
        self._unset_keepalive_if_required()
        self._client_gone = True
        if self.in_flight:
            self._end("failed" if self._broken_off else "client_aborted", self.in_flight)
        self.slot_server.clients.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data. During a canary, the head of a request is inspected first, because it may decide the side.

        A pipelined request is not inspected: it is answered by the side that answers the request before it.
        """
        if not (self._held or (self.public and self._is_idle and self.slot_server.gate.reads_heads)):
            super().data_received(data)
            return
        self._unset_keepalive_if_required()
        self._held += data
        if not has_whole_head(self._held) or not self.transport.is_reading():
            return  # not reading: it waits to be passed on (Python 3.11 reads after a pause in connection_made)
        side = self.slot_server.gate.side_by_head(self._held)
        self.side = side or self.side
        if side is None or self.slot_server.keeps(self):
            self._release()
        else:
            self.transport.pause_reading()
            self._pass_on_held()

    def _pass_on_held(self) -> None:
        """Pass the connection on with the request that was read from it; without a receiver, answer it here."""
        if self.transport.is_closing():
            return
        client, outcome = self.transport.get_extra_info("socket"), Outcome.TRY_AGAIN
        if self.transport.get_write_buffer_size() == 0:
            outcome = self.slot_server.pass_on(client, self.side, bytes(self._held))
        if outcome is Outcome.TRY_AGAIN:
            self.loop.call_later(_RETRY_DELAY, self._pass_on_held)
        elif outcome is Outcome.SENT:
            self.slot_server.ledger.handed_out += 1
            self._held.clear()
            self.transport.close()
        else:
            self.transport.resume_reading()
            self._release()

    def _release(self) -> None:
        """Parse the held bytes, to answer their request here."""
        data = bytes(self._held)
        self._held.clear()
        super().data_received(data)

    def shutdown(self) -> None:
        """Close the connection if it is idle; else the response in flight gets "Connection: close"."""
        if self._held:
            self._release()
        super().shutdown()

    @property
    def _is_idle(self) -> bool:
        return self.begun == self.received == self.answered

    def cut(self) -> None:
        """Abort the connection with its requests unanswered: the drain deadline has passed."""
        if self.in_flight:
            self._count("cut", self.in_flight)
            self._end("failed", self.in_flight)
        self.transport.abort()

    def on_message_begin(self) -> None:
        """Count a request at its first byte."""
        self._begin()
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Count a request that was received completely."""
        super().on_message_complete()
        self.received += 1
        self._move_unless_kept()

    def on_response_complete(self) -> None:
        """Count a completed response, then pick the side of the next request."""
        if self.transport.is_closing() and not self.in_flight:
            return  # counted already: the request was cut, or an invalid body got a 400
        status = self._timer.status if self._timer else None
        self._end("completed" if status is not None and status < 500 else "failed")
        self._timer = None
        super().on_response_complete()
        self._pick_side()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP; the ledger counts it as a completed request."""
        if not self.in_flight:
            self._begin()
        self._end("completed")
        super().send_400_response(msg)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        """Run the application, and record a sample of its answer."""
        scope["state"]["internal"] = not self.public
        is_mirrored = not self.public and any(name == MIRRORED_HEADER for name, _ in scope["headers"])
        self._timer = timer = ResponseTimer(scope, receive, send, trailer=is_mirrored)
        exchange = self.slot_server.mirror.capture(scope, timer) if self.public else None
        try:
            await self._application(scope, timer.receive, timer.send)
        finally:
            self._broken_off = self._broken_off or not timer.complete
            if self.public:
                self.slot_server.samples.add(timer.sample(client_gone=self._client_gone))
            if exchange:
                self.slot_server.mirror.replay(exchange)

    def _begin(self) -> None:
        self.begun += 1
        self._count("accepted")
        if self.public:
            self.slot_server.busy.add(self)

    def _end(self, outcome: str, requests: int = 1) -> None:
        """Count the end of the oldest requests in flight; they end in the order in which they began."""
        self._count(outcome, requests)
        drained = min(requests, self._to_drain)
        self._to_drain -= drained
        if outcome == "completed":
            self._count("drained", drained)
        self.answered += requests
        if not self.in_flight:
            self.slot_server.busy.discard(self)

    def _count(self, field: str, amount: int = 1) -> None:
        ledger = self.slot_server.ledger
        if self.public:
            setattr(ledger, field, getattr(ledger, field) + amount)
        elif field == "accepted":
            ledger.internal += amount

    def _pick_side(self) -> None:
        if self.public:
            self.side = self.slot_server.gate.pick_side()
        self._move_unless_kept()

    def _move_unless_kept(self) -> None:
        if self.public and not self.slot_server.keeps(self):
            self.loop.call_soon(self.slot_server.move, self)

    def _start_idle_timeout(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
