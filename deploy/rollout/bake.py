"""The bake: the new version is live and watched, while the old slot can take over again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.errors import Degraded
from deploy.rollout.judge import Judge
from deploy.rollout.plan import Rollout
from deploy.rollout.rollback_request import RollbackRequest
from deploy.rollout.waiting import POLL, UNIT_POLL, in_flight, require_healthy

__all__ = ["bake", "watch"]


def bake(rollout: Rollout) -> None:
    """Watch the new version, then enter the phase `retire`; raises Degraded if the new version must not stay live."""
    if rollout.old is None:
        return
    state = "can be loaded again" if rollout.is_swap else "stays warm"
    rollout.enter("bake", f"{rollout.old} {state} for {rollout.plan.bake:g} s")
    watch(rollout, rollout.plan.bake)


def watch(rollout: Rollout, seconds: float) -> None:
    """Watch for `seconds` more, judge by all responses since the bake began, and enter the phase `retire`."""
    request = RollbackRequest(rollout.context, rollout.record)
    judge = Judge(rollout, "bake", began=time.monotonic() - rollout.record.seconds_in_phase)
    next_update = time.monotonic()
    deadline = next_update + seconds
    while True:
        now = time.monotonic()
        if now >= next_update:
            judge.update()
        if now >= deadline:
            judge.conclude()
        with _while_live(rollout):
            if request.is_made:
                raise Degraded("the operator rolled it back", by_operator=True)
            if now >= next_update:
                next_update = now + UNIT_POLL
                require_healthy(rollout)
            if now >= deadline:
                rollout.enter("retire", f"{rollout.old} finishes its requests")
                return
        rollout.context.display.progress(f"{deadline - now:.0f} s left, {in_flight(rollout)} in flight, {judge}")
        time.sleep(min(POLL, max(0.0, deadline - now)))


@contextmanager
def _while_live(rollout: Rollout) -> Iterator[None]:
    """Hold the lock on the rename of `live`; raises Degraded if a rollback has renamed it."""
    with rollout.entry.journal.switching():
        if rollout.context.slots.live != rollout.candidate:
            raise Degraded("the operator rolled it back", is_undone=True, by_operator=True)
        yield
