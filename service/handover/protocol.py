"""HTTP/1.x on one connection: counts its requests, measures their answers, and limits the time its client may take."""

from __future__ import annotations

import asyncio
from typing import Protocol

from uvicorn.config import Config
from uvicorn.server import ServerState

from service.contract.route import Route
from service.contract.worker_state import Ledger
from service.handover.idle import REST_AFTER
from service.handover.plain_errors import plain_error
from service.handover.read_rate import ReadRate
from service.handover.reader import RequestReader
from service.handover.recorder import Recorder
from service.handover.slow_clients import SlowClients
from service.handover.turns import Turns
from service.routing.mirror import Mirror
from service.settings import Settings
from service.timing import MIRRORED_HEADER, Message, Receive, ResponseTimer, Send

__all__ = ["RequestProtocol", "RequestServer"]

BODY_PAUSE = 20.0  # seconds for which a body may pause, as in Apache's mod_reqtimeout
_HURRY = 10.0  # times as fast passes the time of a client for which others wait
_MAX_HURRIED = 5.0  # seconds in which its request must have arrived


class RequestServer(Protocol):
    """The server, as its connections use it to count their requests."""

    settings: Settings
    mirror: Mirror
    recorder: Recorder
    busy: set[RequestProtocol]
    """The client connections with a request in flight."""
    slow_clients: SlowClients
    turns: Turns
    read_rate: ReadRate

    @property
    def ledger(self) -> Ledger:
        """The counts of this worker."""


class RequestProtocol(RequestReader):
    """A connection of a client (`public`) or of the slot's internal socket.

    A client has `head_timeout` seconds to send the head of a request. Its body may pause for BODY_PAUSE, and each byte
    gives back as much of that as it may take at `body_rate`. The time passes only while the server waits for the
    client: not while it does not read, nor while an earlier request is answered. A request that takes too long is
    answered with a 408 if its answer has not begun, and counts as aborted by its client.

    A client that reads nothing for `read_timeout` seconds, while a part of its answer waits in the write buffer, is
    disconnected.

    `hurry`: whether other clients wait until this connection has ended. Then its own client's time passes ten times as
    fast, and a request has to arrive within a few seconds.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        slot_server: RequestServer,
        *,
        public: bool,
        address: str,
        idle_since: float | None = None,
    ) -> None:
        super().__init__(config, server_state, slot_server.settings, slot_server.turns, slot_server.read_rate, address)
        self.slot_server = slot_server
        self.public = public
        self.route: Route | None = None
        """How the connection came here; None if it was accepted here."""
        self.handoff: tuple[float, float] | None = None
        """When it was sent and received, for the next request, if that waited for it; monotonic seconds."""
        self._to_drain = 0
        self._timer: ResponseTimer | None = None
        self._broken_off = self._client_gone = False
        self._seconds_to_send = self._seconds_to_read = self._hurried = 0.0
        self.idle_since = self.loop.time() if idle_since is None else idle_since
        self._unsent = 0  # bytes in the write buffer, when that was last looked at
        self._application = self.app
        self.app = self._answer

    def note_gate_closed(self) -> None:
        """Count the requests in flight as drained once they complete: the generation takes no more requests."""
        self._to_drain = self.in_flight

    def cut(self) -> None:
        """Abort the connection with its requests unanswered: the drain deadline has passed."""
        self._broken_off = True
        self._begin_unread()
        if self.in_flight:
            self._count("cut", self.in_flight)
            self._end("failed", self.in_flight)
        self.transport.abort()

    def shutdown(self) -> None:
        """Close the connection if it is idle; the last response in flight gets "Connection: close"."""
        if not self._inbox and not self._is_lingering:
            super().shutdown()

    @property
    def waits_for_client(self) -> bool:
        """Whether no whole request is in flight."""
        return self.received <= self.answered and not self._is_lingering

    def give_up(self) -> None:
        """Close the connection; a request that is not whole gets a 408."""
        if self.in_flight:
            self._time_out()
        self.transport.close()

    def pass_time_to_read(self, seconds: float, *, hurry: bool = False) -> None:
        """Let the time pass for which the client has read nothing of its answer."""
        unsent = self.transport.get_write_buffer_size()
        self._seconds_to_read -= seconds * (_HURRY if hurry else 1)
        if unsent < self._unsent:
            self._seconds_to_read = self.settings.read_timeout
        self._unsent = unsent
        if self._seconds_to_read < 0:
            self._time_out()

    def pass_time_to_send(self, seconds: float, *, hurry: bool = False) -> None:
        """Let the time pass that the client has to send its request."""
        waits_for_client = self.transport.is_reading() and self.in_flight <= 1
        if not waits_for_client or (self.cycle and self.cycle.waiting_for_100_continue):
            return
        self._seconds_to_send -= seconds * (_HURRY if hurry else 1)
        self._hurried += seconds if hurry else 0.0
        if self._seconds_to_send < 0 or self._hurried > _MAX_HURRIED:
            self._time_out()

    # called by the transport and the parser

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the idle timeout at once: a client that connects and sends nothing is idle too."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # else a client that stops reading would not be noticed
        self._look_later(self.timeout_keep_alive)

    def _look_whether_idle(self) -> None:
        """Close the connection once it has been idle for the keep-alive time; until then it may rest.

        Its timer looks when that was last so, instead of being cancelled and made anew with every request.
        """
        idle = self.loop.time() - self.idle_since if self.is_idle else 0.0
        left = self.timeout_keep_alive - idle
        if left <= 0:
            self.timeout_keep_alive_handler()
        elif idle < REST_AFTER or not self.rest():
            self._look_later(left)

    def _look_later(self, left: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(min(left, REST_AFTER), self._look_whether_idle)

    def rest(self) -> bool:
        """Have the connection kept as a bare socket; returns False where that cannot be done."""
        return False

    def _unset_keepalive_if_required(self) -> None:
        """Keep the timer; only a connection that is lost has none."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the requests in flight, which will not be answered any more."""
        super()._unset_keepalive_if_required()
        self._client_gone = True
        self._begin_unread()
        if self.in_flight:
            self._end("failed" if self._broken_off else "client_aborted", self.in_flight)
        self.slot_server.slow_clients.receiving.discard(self)
        self.slot_server.slow_clients.sending.discard(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note that an answer waits for its client."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._seconds_to_read = self.settings.read_timeout
        self.slot_server.slow_clients.sending.add(self)

    def resume_writing(self) -> None:
        """Note that it does not wait any more."""
        super().resume_writing()
        self.slot_server.slow_clients.sending.discard(self)

    def on_headers_complete(self) -> None:
        """Begin to answer; the client has the time of a body from now on."""
        self._seconds_to_send = BODY_PAUSE
        super().on_headers_complete()

    def _end_part(self) -> None:
        """Give back the time that the bytes may take."""
        self._seconds_to_send = min(BODY_PAUSE, self._seconds_to_send + self._part / self.settings.body_rate)
        super()._end_part()

    def on_message_complete(self) -> None:
        """Stop the client's time to send."""
        super().on_message_complete()
        if self.received == self.begun:
            self.slot_server.slow_clients.receiving.discard(self)
        if self.received == self.answered:  # before its last byte came
            self.idle_since = self.loop.time()

    def on_response_complete(self) -> None:
        """Count a completed response."""
        if self.transport.is_closing() and not self.in_flight:
            return  # counted already: the request was cut, or an invalid body got a 400
        timer, self._timer = self._timer, None
        if timer:
            timer.complete = timer.status is not None
        self._end("completed" if timer and timer.status and timer.status < 500 else "failed")
        self.server_state.total_requests += 1
        self.idle_since = self.loop.time()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()

    def refuse(self, status: int, reason: str | None = None) -> None:
        """Answer what is not HTTP or too large; the ledger counts it as a completed request.

        An application that was reading its body has not failed: the client has ended the request.
        """
        self._client_gone = True
        cycle = self.cycle
        can_answer = self._has_partial_head or not cycle or not cycle.response_started or cycle.response_complete
        if not self.in_flight:
            self.begin()
        self._end("completed" if can_answer else "client_aborted")
        if can_answer:
            self._respond(status, reason)
        else:
            self.transport.close()

    def _respond(self, status: int, reason: str | None = None) -> None:
        self.slot_server.slow_clients.receiving.discard(self)
        recorder, is_known = self.slot_server.recorder, self.scope is not None and not self._has_partial_head
        method, path = (self.scope.get("method", ""), self.url.partition(b"?")[0]) if is_known else ("", b"")
        recorder.refuse(self.address, status, method, path.decode("latin-1"), reason)
        if is_known and self.cycle and not self.cycle.response_complete:  # the application runs, and ends with an error
            self.scope["state"]["refused"] = status
        elif self.public:
            recorder.count_refused(status)
        self.close_after(plain_error(status, self.server_state.default_headers))

    def _time_out(self) -> None:
        """Give up on a client that has taken too long."""
        self._client_gone = True
        can_answer = self.in_flight and (self._has_partial_head or not self.cycle.response_started)
        self._inbox.clear()
        self.slot_server.slow_clients.receiving.discard(self)
        if self.in_flight:
            self._end("client_aborted", self.in_flight)
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        elif can_answer:
            self._respond(408)
        else:
            self.transport.close()

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        """Run the application, and record how its answer went."""
        scope["state"]["internal"] = not self.public
        scope["state"]["is_logged"] = self.slot_server.recorder.access.is_on
        is_mirrored = not self.public and any(name == MIRRORED_HEADER for name, _ in scope["headers"])
        self._timer = scope["state"]["timer"] = timer = ResponseTimer(scope, receive, send, trailer=is_mirrored)
        mirror, recorder = self.slot_server.mirror, self.slot_server.recorder
        origin = recorder.begin(timer) if self.public else None
        handoff, self.handoff = self.handoff, None
        exchange = mirror.capture(scope, timer) if self.public and scope["method"] == "POST" else None
        try:
            await self._application(scope, timer.receive, timer.send)
        finally:
            del scope["state"]["timer"]  # a cycle, which the garbage collector would have to find
            timer.end(client_gone=self._client_gone and not self._broken_off)
            self._broken_off = self._broken_off or not timer.complete
            recorder.add(timer, origin, self.address, self.route, handoff)
            if exchange:
                mirror.replay(exchange)

    # the counts

    def begin(self) -> None:
        """Count a request at its first byte."""
        super().begin()
        self._seconds_to_send, self._hurried = self.settings.head_timeout, 0.0
        self.slot_server.slow_clients.receiving.add(self)
        if self.public:
            self.slot_server.ledger.accepted += 1
            self.slot_server.busy.add(self)
        else:
            self.slot_server.ledger.internal += 1

    def _take_back(self) -> None:
        """Uncount a request that another process will count: it gets the bytes that have come of it."""
        self.begun -= 1
        self._has_partial_head = False
        self._to_drain = 0
        self.slot_server.ledger.accepted -= 1
        self.slot_server.busy.discard(self)
        self.slot_server.slow_clients.receiving.discard(self)

    def _begin_unread(self) -> None:
        """Count the request that waits behind the one in flight: it was read, and will not be answered."""
        self._inbox.skip_empty_lines()
        if self._inbox and self.begun == self.received:
            self.begin()
        self._inbox.clear()

    def _end(self, outcome: str, requests: int = 1) -> None:
        """Count the end of the oldest requests in flight; they end in the order in which they began."""
        self.answered += requests
        if self.public:
            self._count(outcome, requests)
        if self._to_drain:
            drained = min(requests, self._to_drain)
            self._to_drain -= drained
            if outcome == "completed":
                self._count("drained", drained)
        if not self.in_flight:
            self.slot_server.busy.discard(self)

    def _count(self, field: str, amount: int = 1) -> None:
        if self.public:
            counts = vars(self.slot_server.ledger)
            counts[field] += amount
