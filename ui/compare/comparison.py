"""A question that both slots answer at once."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from service.contract.slots import SLOTS, http_socket
from ui.client import Fault, LiveSlot, ServiceClient, ServiceError, service_address
from ui.conversation import Question, Reply

__all__ = ["Comparison", "Side", "connect_to_slot", "find_sides", "slot_socket"]

Connect = Callable[[str], ServiceClient | None]


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    role: str  # live; candidate of a canary; idle: it runs, and clients' requests do not go to it
    slot: LiveSlot
    client: ServiceClient = field(compare=False, repr=False)


@dataclass(eq=False)
class Comparison:
    """A question, and the reply of each side."""

    question: Question
    sides: tuple[Side, Side]  # when it was asked
    replies: tuple[Reply, Reply] = field(default_factory=lambda: (Reply(), Reply()))
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    choice: str | None = None  # the vote

    def start(self) -> None:
        """Request both answers at once; does not block."""
        for side, reply in zip(self.sides, self.replies, strict=True):
            arguments: tuple[object, ...] = (side.client, [self.question.message()], {})
            threading.Thread(target=reply.receive, args=arguments, name=f"compare {side.role}", daemon=True).start()

    def stop(self) -> None:
        """Stop what is still being received."""
        for reply in self.replies:
            if not reply.complete:
                reply.stop()

    @property
    def complete(self) -> bool:
        """Whether both replies have ended."""
        return all(reply.complete for reply in self.replies)

    @property
    def versions(self) -> tuple[str, str] | None:
        """The versions of two whole answers from two slots; None if there is nothing to vote on."""
        if not all(reply.sendable and not reply.stopped and reply.live for reply in self.replies):
            return None
        first, second = (reply.live for reply in self.replies)
        if first is None or second is None or first.slot == second.slot or not (first.version and second.version):
            return None
        return first.version, second.version


def find_sides(client: ServiceClient, connect: Connect) -> tuple[Side, Side] | Side:
    """Return the live side and the other one, or the live side alone; raises ServiceError.

    The other one is the candidate while a canary runs, which the service answers for by X-GLM-Slot. Without a canary
    that header has no effect, and a slot that runs is asked on its internal socket. `connect`: returns the client of
    that, None if it is not there.
    """
    live, candidate = (_ask_side(client.pinned(role), role) for role in ("live", "candidate"))
    if live.slot.slot != candidate.slot.slot:
        return live, candidate
    idle = _find_idle(live, connect)
    return (live, idle) if idle else live


def _ask_side(client: ServiceClient, role: str) -> Side:
    return Side(role, client.live(), client)


def _find_idle(live: Side, connect: Connect) -> Side | None:
    """Return the other slot if it answers. It checks no key: the live slot must accept the one of the page."""
    for name in SLOTS:
        if name == live.slot.slot or (client := connect(name)) is None:
            continue
        try:
            found = _ask_side(client, "idle")
            live.client.request("GET", "/v1/models")
        except ServiceError as error:
            if error.fault is Fault.UNAUTHORIZED:
                raise
        else:
            return found
    return None


def slot_socket(slot: str) -> Path | None:
    """Return a slot's internal socket, below GLM_RUNTIME; None if it is not there, or not for this user."""
    runtime = os.environ.get("GLM_RUNTIME")
    path = http_socket(Path(runtime), slot) if runtime else None
    return path if path and os.access(path, os.W_OK) else None


def connect_to_slot(socket: Path) -> ServiceClient:
    """Return a client of a slot's internal socket."""
    return ServiceClient(service_address(), socket=socket)
