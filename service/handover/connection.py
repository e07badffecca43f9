"""One client connection that counts its requests, so that "between requests" is known exactly."""

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

__all__ = ["Connection", "Owner"]

_READ = 65536  # bytes
_RETRY = 0.01  # seconds until a full backlog, or a client that reads slowly, is tried again


class Owner(Protocol):
    """What a connection needs of the server that holds it."""

    clients: set[Connection]
    """Connections of clients, as opposed to those of the slot's internal socket."""
    busy: set[Connection]
    """The client connections that have a request in flight."""
    gate: Gate
    samples: SampleRing
    mirror: Mirror

    @property
    def ledger(self) -> Ledger:
        """The counts of this worker."""

    def keeps(self, connection: Connection) -> bool:
        """Return whether the connection's next request is answered here."""

    def pass_on(self, client: socket.socket, side: Side, unread: bytes = b"") -> Outcome:
        """Send the client's connection to its owner, with what was read from it and not answered."""


class Connection(HttpToolsProtocol):
    """An HTTP/1.x connection that may be passed to another process between two requests.

    Three counts move independently: requests begun, requests received whole, responses completed. The connection is
    between requests only where all three are equal and nothing is left to write. Then no byte of a request has been
    read that the next owner would miss, and no byte of a response is still to be sent.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        owner: Owner,
        *,
        public: bool,
        adopted: bool = False,
        unread: bytes = b"",
    ) -> None:
        super().__init__(config, server_state, {})
        self.owner = owner
        self.public = public
        self.adopted = adopted
        self.side: Side = "live"
        """The side that answers the next request. Drawn once for each: the receiver keeps the sender's choice."""
        self._held = bytearray(unread)
        self.begun = self.received = self.answered = 0
        self._to_drain = 0
        self._timer: ResponseTimer | None = None
        self._broken_off = self._client_gone = False
        self._application = self.app
        self.app = self._answer

    @property
    def in_flight(self) -> int:
        """Requests that were begun and not yet answered."""
        return self.begun - self.answered

    @property
    def is_between_requests(self) -> bool:
        """Whether the connection can be passed to another process without its client noticing."""
        return (
            self._is_idle
            and not self._held
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
        )

    def note_gate_closed(self) -> None:
        """Count what is in flight now as drained when it completes: its generation begins nothing more."""
        self._to_drain = self.in_flight

    def move(self) -> Outcome | None:
        """Pass the connection to its owner if it is between requests; None when it is not.

        Reading stops first: what the client sends from here on stays in the kernel for the next owner.
        """
        if not self.is_between_requests:
            return None
        self.transport.pause_reading()
        outcome = self.owner.pass_on(self.transport.get_extra_info("socket"), self.side)
        if outcome is Outcome.SENT:
            if self.public:
                self.owner.ledger.handed_out += 1
            self.transport.close()
        else:
            self.transport.resume_reading()
        return outcome

    # called by the transport and the parser

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the idle timeout at once: a client that connects and sends nothing is idle too."""
        super().connection_made(transport)
        if self.public:
            self.owner.clients.add(self)
        if self.adopted:
            self.owner.ledger.adopted += 1
            self.side = self.owner.gate.own_side
        else:
            self._pick_side()
        self._start_idle_timeout()
        if self._held:
            self._release()
        elif self.adopted and self.owner.keeps(self):
            self._read_at_once()

    def _read_at_once(self) -> None:
        """Read what came with the connection: on a busy worker the event loop's next turn is milliseconds away."""
        try:
            data = os.read(self.transport.get_extra_info("socket").fileno(), _READ)
        except OSError:  # nothing yet, or a broken connection, which the transport reports
            return
        if data:
            self.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the requests that will not be answered any more."""
        self._unset_keepalive_if_required()
        self._client_gone = True
        if self.in_flight:
            self._end("failed" if self._broken_off else "client_aborted", self.in_flight)
        self.owner.clients.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came. While a canary holds, a request's head is looked at first: it may decide the side.

        A request that was sent before the last one was answered goes where that one went.
        """
        if not (self._held or (self.public and self._is_idle and self.owner.gate.reads_heads)):
            super().data_received(data)
            return
        self._unset_keepalive_if_required()
        self._held += data
        if not has_whole_head(self._held) or not self.transport.is_reading():
            return  # the rest waits to be passed on: Python 3.11.2 delivers data after a pause in connection_made
        side = self.owner.gate.side_by_head(self._held)
        self.side = side or self.side
        if side is None or self.owner.keeps(self):
            self._release()
        else:
            self.transport.pause_reading()
            self._pass_on_held()

    def _pass_on_held(self) -> None:
        """Pass the connection on with the request that was read from it; answer it here without a receiver."""
        if self.transport.is_closing():
            return
        client, outcome = self.transport.get_extra_info("socket"), Outcome.TRY_AGAIN
        if self.transport.get_write_buffer_size() == 0:
            outcome = self.owner.pass_on(client, self.side, bytes(self._held))
        if outcome is Outcome.TRY_AGAIN:
            self.loop.call_later(_RETRY, self._pass_on_held)
        elif outcome is Outcome.SENT:
            self.owner.ledger.handed_out += 1
            self._held.clear()
            self.transport.close()
        else:
            self.transport.resume_reading()
            self._release()

    def _release(self) -> None:
        """Parse what was held."""
        data = bytes(self._held)
        self._held.clear()
        super().data_received(data)

    def shutdown(self) -> None:
        """Close between requests; with a request in flight answer it with "Connection: close"."""
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
        """Count a request with its first byte, before its head is complete."""
        self._begin()
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Count a request whose last byte has come."""
        super().on_message_complete()
        self.received += 1
        self._move_if_not_ours()

    def on_response_complete(self) -> None:
        """Count a completed response, then pass the connection on if it belongs elsewhere."""
        if self.transport.is_closing() and not self.in_flight:
            return  # counted already: the request's body was no valid HTTP and got a 400
        status = self._timer.status if self._timer else None
        self._end("completed" if status is not None and status < 500 else "failed")
        self._timer = None
        super().on_response_complete()
        self._pick_side()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; the ledger counts it as a request."""
        if not self.in_flight:
            self._begin()
        self._end("completed")
        super().send_400_response(msg)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        """Run the application, and record how it answered and whether it broke off."""
        scope["state"]["internal"] = not self.public
        is_mirrored = not self.public and any(name == MIRRORED_HEADER for name, _ in scope["headers"])
        self._timer = timer = ResponseTimer(scope, receive, send, trailer=is_mirrored)
        exchange = self.owner.mirror.capture(scope, timer) if self.public else None
        try:
            await self._application(scope, timer.receive, timer.send)
        finally:
            self._broken_off = self._broken_off or not timer.complete
            if self.public:
                self.owner.samples.add(timer.sample(client_gone=self._client_gone))
            if exchange:
                self.owner.mirror.replay(exchange)

    def _begin(self) -> None:
        self.begun += 1
        self._count("accepted")
        if self.public:
            self.owner.busy.add(self)

    def _end(self, outcome: str, requests: int = 1) -> None:
        """Count the oldest of the requests in flight: they end in the order in which they began."""
        self._count(outcome, requests)
        drained = min(requests, self._to_drain)
        self._to_drain -= drained
        if outcome == "completed":
            self._count("drained", drained)
        self.answered += requests
        if not self.in_flight:
            self.owner.busy.discard(self)

    def _count(self, field: str, amount: int = 1) -> None:
        ledger = self.owner.ledger
        if self.public:
            setattr(ledger, field, getattr(ledger, field) + amount)
        elif field == "accepted":
            ledger.internal += amount

    def _pick_side(self) -> None:
        if self.public:
            self.side = self.owner.gate.pick_side()
        self._move_if_not_ours()

    def _move_if_not_ours(self) -> None:
        if self.public and not self.owner.keeps(self):
            self.loop.call_soon(self.move)

    def _start_idle_timeout(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
