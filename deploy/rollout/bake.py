"""The bake: the new version is live and watched, while the old slot can take over again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.errors import Degraded
from deploy.rollout import hooks
from deploy.rollout.judge import Judge
from deploy.rollout.plan import Rollout
from deploy.rollout.rollback_request import RollbackRequest
from deploy.rollout.waiting import POLL, UNIT_POLL, in_flight, require_alive, require_healthy

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
        have_hooks_ended = hooks.advance(rollout)
        is_over = now >= deadline and have_hooks_ended and judge.conclude()
        with _while_live(rollout):
            if request.is_made:
                raise Degraded("the operator rolled it back", by_operator=True)
            require_alive(rollout)
            if now >= next_update or is_over:
                next_update = now + UNIT_POLL
                require_healthy(rollout)
            if is_over:
                rollout.enter("retire", f"{rollout.old} finishes its requests")
                return
        rollout.context.display.progress(_progress(rollout, judge, deadline - now))
        time.sleep(POLL if now >= deadline else min(POLL, deadline - now))


def _progress(rollout: Rollout, judge: Judge, left: float) -> str:
    what = f"{left:.0f} s left" if left > 0 else "the last checks"
    return f"{what}, {in_flight(rollout)} in flight, {judge}"


@contextmanager
def _while_live(rollout: Rollout) -> Iterator[None]:
    """Hold the lock on the rename of `live`; raises Degraded if a rollback has renamed it."""
    with rollout.entry.journal.switching():
        if rollout.context.slots.live != rollout.candidate:
            raise Degraded("the operator rolled it back", is_undone=True, by_operator=True)
        yield
