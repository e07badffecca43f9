"""The new version while it is live and has not yet earned its place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.errors import Degraded
from deploy.rollout.judge import Judge
from deploy.rollout.plan import Rollout
from deploy.rollout.rollback_request import Wish
from deploy.rollout.waiting import LOOK, LOOK_AT_UNIT, in_flight, require_healthy


def bake(rollout: Rollout) -> None:
    """Keep the old slot warm and watch the new one; raises Degraded when the new one should not be live any more."""
    if rollout.old is None:
        return
    waits = "can be loaded again" if rollout.swaps else "stays warm"
    rollout.enter("bake", f"{rollout.old} {waits} for {rollout.plan.bake:g} s")
    wish = Wish(rollout.context, rollout.entry.record)
    judge = Judge(rollout, "bake")
    deadline = time.monotonic() + rollout.plan.bake
    look_at_unit = time.monotonic()
    while True:
        now = time.monotonic()
        if now >= look_at_unit:
            judge.look()
        if now >= deadline:
            judge.conclude()
        with _entrusted(rollout):
            if wish.is_made:
                raise Degraded("the operator rolled it back")
            if now >= look_at_unit:
                look_at_unit = now + LOOK_AT_UNIT
                require_healthy(rollout)
            if now >= deadline:
                rollout.enter("retire", f"{rollout.old} finishes what it began")
                return
        rollout.context.display.progress(f"{deadline - now:.0f} s left, {in_flight(rollout)} in flight, {judge}")
        time.sleep(min(LOOK, max(0.0, deadline - now)))


@contextmanager
def _entrusted(rollout: Rollout) -> Iterator[None]:
    """A moment in which nobody else may rename `live`; raises Degraded if somebody did before."""
    with rollout.entry.journal.switching():
        if rollout.context.slots.live != rollout.candidate:
            raise Degraded("the operator rolled it back", by_operator=True)
        yield
