"""A question that both slots answer at once, each side pinned by `X-GLM-Slot`."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field

from ui.client import LiveSlot, ServiceClient
from ui.conversation import Question, Reply

__all__ = ["SIDES", "Comparison", "find_sides"]

SIDES = ("live", "candidate")  # values of X-GLM-Slot


@dataclass(eq=False)
class Comparison:
    """A question, and the reply of each side in the order of SIDES."""

    question: Question
    asked: tuple[LiveSlot, LiveSlot]  # the slots when it was asked
    replies: tuple[Reply, Reply] = field(default_factory=lambda: (Reply(), Reply()))
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    choice: str | None = None  # the vote

    def start(self, client: ServiceClient) -> None:
        """Request both answers at once; does not block."""
        for side, reply in zip(SIDES, self.replies, strict=True):
            arguments: tuple[object, ...] = (client.pinned(side), [self.question.message()], {})
            threading.Thread(target=reply.receive, args=arguments, name=f"compare {side}", daemon=True).start()

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


def find_sides(client: ServiceClient) -> tuple[LiveSlot, LiveSlot] | LiveSlot:
    """Return the live slot and the candidate, or the one slot that answers for both; raises ServiceError."""
    live, candidate = (client.pinned(side).live() for side in SIDES)
    return live if live.slot == candidate.slot else (live, candidate)
