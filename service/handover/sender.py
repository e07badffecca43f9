"""Sends client connections to the generation that owns them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from service.contract.route import Route
from service.handover.fd_passing import Outcome, send_bundle, send_fd
from service.handover.supervisor import Supervisor
from service.routing.canary import Side
from service.routing.ownership import Gate
from service.settings import Settings

__all__ = ["ConnectionSender", "SendingServer"]


class SendingServer(Protocol):
    """The server whose connections are sent."""

    settings: Settings
    gate: Gate
    supervisor: Supervisor
    is_leaving: bool

    @property
    def answers_none(self) -> bool:
        """Whether it takes no requests, whatever `live` says: it leaves, or has vacated."""


class ConnectionSender:
    """Sends the connections of one worker, which is called `name` in their routes."""

    def __init__(self, server: SendingServer, name: str) -> None:
        self._server = server
        self._name = name

    def pass_on(self, client: socket.socket, side: Side, unread: bytes = b"", came: Route | None = None) -> Outcome:
        """Send a client's connection to the side's owner, with the bytes that were read from it and not answered.

        The live slot gets it if the candidate has no receiver. If this worker leaves and there is no owner, the service
        manager stores the connection.
        """
        note = Route.through(self._name, came).note
        outcome = self._send(side, lambda owner: send_fd(client.fileno(), owner, unread, note))
        if outcome is Outcome.NO_RECEIVER and self._server.is_leaving and self._server.settings.handoff and not unread:
            outcome = self._server.supervisor.store(client)
        return outcome

    def pass_on_bundle(self, clients: Sequence[tuple[socket.socket, Route | None]], side: Side) -> Outcome:
        """Send the connections, which came by these routes, to the side's owner: all of them or none."""
        noted = [(client.fileno(), Route.through(self._name, came).note) for client, came in clients]
        return self._send(side, lambda owner: send_bundle(noted, owner))

    def _send(self, side: Side, send: Callable[[Path], Outcome]) -> Outcome:
        outcome = self._send_to(side, send)
        if side != "live" and outcome is Outcome.NO_RECEIVER:
            outcome = self._send_to("live", send)
        return outcome

    def _send_to(self, side: Side, send: Callable[[Path], Outcome]) -> Outcome:
        """Send to the owner. That may be this generation, if this worker answers none: another one receives it, or the
        connection waits in the backlog.
        """
        server = self._server
        owner = server.gate.owner(side)
        if not server.settings.handoff or owner is None:
            return Outcome.NO_RECEIVER
        if server.gate.is_open(side) and not (server.answers_none and server.supervisor.is_running):
            return Outcome.NO_RECEIVER
        return send(owner)
