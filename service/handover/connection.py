"""One client connection that counts its requests, so that "between requests" is a fact and not a guess."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.contract.samples import Message, Receive, Samples, Send, Stopwatch
from service.contract.worker_state import Ledger
from service.handover.fd_passing import Outcome
from service.routing import head
from service.routing import timing as echo
from service.routing.canary import Side
from service.routing.mirror import Mirror
from service.routing.ownership import Gate

_READ = 65536  # bytes
_AGAIN = 0.01  # seconds until a full backlog, or a client that reads slowly, is tried again


class Owner(Protocol):
    """What a connection asks of the server that holds it."""

    guests: set[Connection]
    """Connections of clients, as opposed to those at the slot's own door."""
    busy: set[Connection]
    """Of the guests: those with a request in flight."""

    @property
    def ledger(self) -> Ledger:
        """Where to count."""

    gate: Gate
    """Whose a connection is, and a request."""
    samples: Samples
    """Where to note how an answer went."""
    mirror: Mirror
    """Which asks the candidate too."""

    def keeps(self, connection: Connection) -> bool:
        """Whether the connection's next request is ours to answer."""

    def pass_on(self, client: socket.socket, side: Side, held: bytes = b"") -> Outcome:
        """Hand the client's connection to its owner, with what was read from it and not answered."""


class Connection(HttpToolsProtocol):
    """An HTTP/1.x connection that may change hands between two requests.

    Three counts move independently (requests begun, requests received whole, responses completed). The connection is
    between requests only where all three agree and nothing is left to write: then no byte of a request has been read
    that the next owner would miss, and none of a response is still to be sent.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        owner: Owner,
        *,
        public: bool,
        adopted: bool = False,
        held: bytes = b"",
    ) -> None:
        super().__init__(config, server_state, {})
        self.owner = owner
        self.public = public
        self.adopted = adopted
        self.side: Side = "live"
        """Who is to answer the next request. Drawn once for each: who was handed a connection does not toss again."""
        self._held = bytearray(held)
        self.begun = self.received = self.answered = 0
        self._to_drain = 0
        self._answering: Stopwatch | None = None
        self._broken = self._gone = False
        self._serve = self.app
        self.app = self._answer

    @property
    def in_flight(self) -> int:
        """Requests that were begun and not yet answered."""
        return self.begun - self.answered

    @property
    def is_between_requests(self) -> bool:
        """Whether another process could take this connection now and nobody would notice."""
        return (
            self._is_idle
            and not self._held
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
        )

    def note_gate_shut(self) -> None:
        """What is in flight now is finished by a generation that begins nothing more."""
        self._to_drain = self.in_flight

    def move(self) -> Outcome | None:
        """Hand the connection to its owner if it is between requests; None when it is not.

        Reading stops first: what the client sends from here on stays in the kernel, for the next owner to read.
        """
        if not self.is_between_requests:
            return None
        self.transport.pause_reading()
        outcome = self.owner.pass_on(self.transport.get_extra_info("socket"), self.side)
        if outcome is Outcome.GIVEN:
            if self.public:
                self.owner.ledger.handed_out += 1
            self.transport.close()
        else:
            self.transport.resume_reading()
        return outcome

    # what the transport and the parser tell us

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the idle clock at once: a client that connects and says nothing is an idle client too."""
        super().connection_made(transport)
        if self.public:
            self.owner.guests.add(self)
        if self.adopted:
            self.owner.ledger.adopted += 1
            self.side = self.owner.gate.own_side
        else:
            self._draw()
        self._start_idle_clock()
        if self._held:
            self._release()
        elif self.adopted and self.owner.keeps(self):
            self._read_at_once()

    def _read_at_once(self) -> None:
        """Read what came with the connection: on a busy worker the loop's next turn is milliseconds away."""
        try:
            data = os.read(self.transport.get_extra_info("socket").fileno(), _READ)
        except OSError:  # nothing yet, or a broken connection, which the transport will meet
            return
        if data:
            self.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle what was begun and will not be answered any more."""
        self._unset_keepalive_if_required()
        self._gone = True
        if self.in_flight:
            self._end("failed" if self._broken else "client_aborted", self.in_flight)
        self.owner.guests.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read. While a canary holds, the head of a request is looked at before any of it is parsed.

        One that was sent before the last was answered goes where that one went.
        """
        if not (self._held or (self.public and self._is_idle and self.owner.gate.reads_heads)):
            super().data_received(data)
            return
        self._unset_keepalive_if_required()
        self._held += data
        if not head.is_whole(self._held) or not self.transport.is_reading():
            return  # the rest waits to be passed on: Python 3.11.2 delivers after a pause in connection_made
        wanted = self.owner.gate.side_of(self._held)
        self.side = wanted or self.side
        if wanted is None or self.owner.keeps(self):
            self._release()
        else:
            self.transport.pause_reading()
            self._pass_on_held()

    def _pass_on_held(self) -> None:
        """Hand over the connection together with the request that was read from it; answer it here if nobody does."""
        if self.transport.is_closing():
            return
        client, outcome = self.transport.get_extra_info("socket"), Outcome.TRY_AGAIN
        if self.transport.get_write_buffer_size() == 0:
            outcome = self.owner.pass_on(client, self.side, bytes(self._held))
        if outcome is Outcome.TRY_AGAIN:
            self.loop.call_later(_AGAIN, self._pass_on_held)
        elif outcome is Outcome.GIVEN:
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
        """Close between requests, or say so with the answer to the one that was begun."""
        if self._held:
            self._release()
        super().shutdown()

    @property
    def _is_idle(self) -> bool:
        return self.begun == self.received == self.answered

    def cut(self) -> None:
        """End the connection with its requests unanswered: the drain deadline has passed."""
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
        self._consider_moving()

    def on_response_complete(self) -> None:
        """Count an answer, then let the connection go to its owner if that is another."""
        if self.transport.is_closing() and not self.in_flight:
            return  # what it answers was settled: its body turned out to be no HTTP, and got a 400
        status = self._answering.status if self._answering else None
        self._end("completed" if status is not None and status < 500 else "failed")
        self._answering = None
        super().on_response_complete()
        self._draw()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; it was a request as far as the account goes."""
        if not self.in_flight:
            self._begin()
        self._end("completed")
        super().send_400_response(msg)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        """Run the application; remember how it answers, and whether it broke off in mid-response."""
        scope["state"]["door"] = not self.public
        self._answering = watch = Stopwatch(scope, receive, send)
        tape = self.owner.mirror.tape(scope, watch) if self.public else None
        is_mirrored = not self.public and any(name == echo.HEADER for name, _ in scope["headers"])
        around = tape or (echo.Echo(watch) if is_mirrored else watch)
        try:
            await self._serve(scope, around.receive, around.send)
        finally:
            self._broken = self._broken or not watch.complete
            if self.public:
                self.owner.samples.add(watch.sample(client_gone=self._gone))
            if tape:
                self.owner.mirror.play(tape)

    def _begin(self) -> None:
        self.begun += 1
        self._count("accepted")
        if self.public:
            self.owner.busy.add(self)

    def _end(self, how: str, requests: int = 1) -> None:
        """Settle the oldest of the requests in flight, for they end in the order in which they began."""
        self._count(how, requests)
        drained = min(requests, self._to_drain)
        self._to_drain -= drained
        if how == "completed":
            self._count("drained", drained)
        self.answered += requests
        if not self.in_flight:
            self.owner.busy.discard(self)

    def _count(self, what: str, many: int = 1) -> None:
        ledger = self.owner.ledger
        if self.public:
            setattr(ledger, what, getattr(ledger, what) + many)
        elif what == "accepted":
            ledger.door += many

    def _draw(self) -> None:
        if self.public:
            self.side = self.owner.gate.draw()
        self._consider_moving()

    def _consider_moving(self) -> None:
        if self.public and not self.owner.keeps(self):
            self.loop.call_soon(self.move)

    def _start_idle_clock(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
