"""The choice of a strategy: both versions beside each other where they fit, else what interrupts clients least."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.display import size
from deploy.errors import GlmError
from deploy.journal.record import Strategy
from deploy.rollout import memory, weights
from deploy.rollout.memory import NoRoom
from deploy.rollout.plan import Context, Plan
from deploy.rollout.waiting import is_warm
from service.contract.generations import current

__all__ = ["Choice", "choose"]


@dataclass(frozen=True)
class Choice:
    """A strategy, and why it was chosen; None if there was no choice, or the rollout is going to be refused anyway."""

    strategy: Strategy
    reason: str | None


def choose(context: Context, version: str, *, needs_two: bool = False) -> Choice:
    """Return overlap where it fits, else weights where the architecture is the same, else swap. Changes nothing.

    `needs_two`: whether both versions are to answer requests at a time, which overlap alone can do.
    """
    live, idle = context.slots.live, context.slots.idle
    if needs_two:
        return Choice("overlap", "a canary or a mirror needs two loaded versions")
    if live is None or not (found := current(context.host.runtime, live)) or not found.is_serving:
        return Choice("overlap", None)
    try:
        if is_warm(context, idle, version):
            return Choice("overlap", f"{version} is still loaded in {idle}")
        copy = memory.require(context, version, "overlap")
    except NoRoom as no_room:
        return _without_room(context, version, str(no_room))
    except GlmError:
        return Choice("overlap", None)
    return Choice("overlap", f"{version} fits beside {live}: it needs {size(copy.least)} at least")


def _without_room(context: Context, version: str, no_room: str) -> Choice:
    try:
        old = weights.require_possible(context, Plan(version, strategy="weights")).version
        memory.require(context, version, "weights")
    except GlmError as error:
        return Choice("swap", f"{no_room}; {error}")
    return Choice("weights", f"{no_room}; its architecture is that of {old}")
