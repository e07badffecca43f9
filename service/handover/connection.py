"""A connection that can be passed to another process between two requests, or with the head of one."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Protocol

from uvicorn.config import Config
from uvicorn.server import ServerState

from service.contract.route import Route
from service.handover.clients import Clients, MovableConnection
from service.handover.fd_passing import Outcome
from service.handover.idle import IdleConnections
from service.handover.protocol import RequestProtocol, RequestServer
from service.handover.sender import ConnectionSender
from service.routing.canary import Side
from service.routing.ownership import Gate

__all__ = ["Connection", "ConnectionServer"]

_READ_SIZE = 65536  # bytes
_RETRY_DELAY = 0.01  # seconds until another attempt after TRY_AGAIN, or while a response is still in the write buffer
_RETRIES = 500  # attempts until the request is answered here


class ConnectionServer(RequestServer, Protocol):
    """The server, as its connections use it."""

    clients: Clients
    """The client connections, without those of the slot's internal socket."""
    idle: IdleConnections
    sender: ConnectionSender
    gate: Gate

    @property
    def answers_all(self) -> bool:
        """Whether every request of a client is answered here."""

    def keeps(self, connection: MovableConnection) -> bool:
        """Return whether the connection's next request is answered here."""

    def move(self, connection: MovableConnection) -> Outcome | None:
        """Pass the connection to its owner, or shut it down if it has none and this worker leaves."""


class Connection(RequestProtocol):
    """An HTTP/1.x connection whose next request may be answered by another process.

    It can be passed on while no request is being answered, no byte of a body was parsed, and the write buffer is empty.
    The next owner gets what is in the inbox: a part of a head, or a whole head and what follows it.

    A request is counted from its first byte on. If it is passed on, the next owner counts it.

    `route`: it was received from another process, with the bytes `unread`, which were read from it there. `side`: it
    has rested since `idle_since`, and that is the side of the request that has begun.
    """

    slot_server: ConnectionServer

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        slot_server: ConnectionServer,
        *,
        public: bool,
        address: str = "",
        route: Route | None = None,
        unread: bytes = b"",
        side: Side | None = None,
        idle_since: float | None = None,
    ) -> None:
        super().__init__(config, server_state, slot_server, public=public, address=address, idle_since=idle_since)
        self.route = route
        self._has_rested = side is not None
        self.side: Side = side or "live"
        """The side that answers the next request, picked once for each: a receiver keeps the sender's choice."""
        self._inbox.add(unread)
        self._is_decided = bool(unread) and self._inbox.head_size is not None  # the sender has inspected the head
        self._attempts = 0  # to pass on the next request; 0: it is not to be passed on

    @property
    def is_between_requests(self) -> bool:
        """Whether the connection can be passed to another process now."""
        return (
            self.received == self.answered
            and (self.begun == self.received or self._has_partial_head)
            and not self._attempts
            and not self._is_lingering
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
        )

    def move(self) -> Outcome | None:
        """Pass the connection to its owner; returns None, and does nothing, unless it is between requests.

        Reading is paused first, so that what the client sends meanwhile stays in the kernel for the next owner.
        """
        if not self.is_between_requests:
            return None
        self.flow.pause_reading("move")
        outcome = self._pass_on()
        self.flow.resume_reading("move")
        return outcome

    def _pass_on(self) -> Outcome:
        client, unread = self.transport.get_extra_info("socket"), bytes(self._inbox)
        outcome = self.slot_server.sender.pass_on(client, self.side, unread, self.route)
        if outcome is Outcome.SENT:
            if self.public:
                self.slot_server.ledger.handed_out += 1
            self._inbox.clear()
            if self._has_partial_head:
                self._take_back()
            self.transport.close()
        return outcome

    def rest(self) -> bool:
        """Have the idle connection kept as a bare socket until its client sends; returns False if it is not idle."""
        can_rest = self.public and self.is_between_requests and not self._inbox  # where a pipelined request may wait
        if not can_rest or not self.transport.is_reading():
            return False
        try:
            client = self.transport.get_extra_info("socket").dup()
        except OSError:  # no descriptor left
            return False
        self.transport.close()
        self.slot_server.clients.remove(self)
        self.slot_server.idle.add(client, self.address, self.side, self.route, self.idle_since)
        return True

    # called by the transport and the parser

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Register the connection, and pick its side."""
        super().connection_made(transport)
        if self.public:
            self.slot_server.clients.add(self)
        if self.route and not self._has_rested:
            self.side = self.slot_server.gate.own_side
        elif not self._has_rested:
            self._pick_side()
        if self._inbox:
            self._note_handoff()
            self.proceed()
        elif (self.route or self._has_rested) and self.slot_server.keeps(self):
            self._read_at_once()

    def _read_at_once(self) -> None:
        """Read what the client has sent already, because the event loop would read it milliseconds later when busy."""
        try:
            data = os.read(self.transport.get_extra_info("socket").fileno(), _READ_SIZE)
        except OSError:  # no data yet, or a broken connection, which the transport reports later
            return
        if data:
            self._note_handoff()
            self.data_received(data)

    def _note_handoff(self) -> None:
        """Note that the next request has waited for the handoff: it had begun before."""
        if self.route and not self._has_rested:
            self.handoff = self.route.sent_at, time.monotonic()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self in self.slot_server.clients:
            self.slot_server.clients.remove(self)
        super().connection_lost(exc)

    def on_message_complete(self) -> None:
        """Move the connection if the request was answered before its last byte came."""
        super().on_message_complete()
        if self.answered == self.received:
            self._move_unless_kept()

    def on_response_complete(self) -> None:
        """Pick the side of the next request, and go on with it if it was read already."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._pick_side()
            self.proceed_in_turn()

    # the next request

    def answers_next(self) -> bool:
        """Return whether the next request is answered here; else its connection is passed on as soon as possible.

        During a canary the head may decide the side.
        """
        if self._attempts:
            return False
        if self._is_decided or not self.public or self.slot_server.answers_all:
            self._is_decided = False
            return True
        self.side = self.slot_server.gate.side_by_head(bytes(self._inbox)) or self.side
        if self.slot_server.keeps(self):
            return True
        if not self._has_partial_head:
            self.begin()
            self._has_partial_head = True
        self.flow.pause_reading("move")
        return self._stays()

    def _stays(self) -> bool:
        """Pass the connection on with what was read from it; return True if there is no receiver.

        While it cannot be sent, another attempt follows.
        """
        self._attempts += 1
        outcome = Outcome.TRY_AGAIN
        if self.transport.get_write_buffer_size() == 0:
            outcome = self._pass_on()
        if outcome is Outcome.TRY_AGAIN and self._attempts < _RETRIES:
            self.loop.call_later(_RETRY_DELAY, self._try_again)
            return False
        self._attempts = 0
        self.flow.resume_reading("move")
        return outcome is not Outcome.SENT

    def _try_again(self) -> None:
        if not self.transport.is_closing() and self._stays():
            self._is_decided = True
            self.proceed()

    def _close_if_done(self) -> None:
        if not self._attempts:
            super()._close_if_done()

    def _pick_side(self) -> None:
        if not self.public or self.slot_server.answers_all:
            self.side = "live"
            return
        self.side = self.slot_server.gate.pick_side()
        self._move_unless_kept()

    def _move_unless_kept(self) -> None:
        if self.public and not self.slot_server.keeps(self):
            self.loop.call_soon(self.slot_server.move, self)
