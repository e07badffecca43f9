"""The end of a slot: it finishes what it began, its memory is freed, and its unit is stopped."""

from __future__ import annotations

import time

from deploy.errors import DrainCut
from deploy.rollout.plan import Context, Rollout
from deploy.rollout.waiting import LOOK, holding, wait_for

_CUT = 10.0  # seconds for a slot that was told to leave now


def retire(rollout: Rollout) -> None:
    """See the old slot off, or leave that to a timer while it is to be kept warm. Raises DrainCut."""
    plan, context = rollout.plan, rollout.context
    if rollout.old is None:
        return
    if plan.keep_warm and not rollout.swaps:
        context.timers.schedule_retirement(rollout.old, rollout.entry.record.previous or "", plan.keep_warm)
        context.display.line(f"{'':10}{rollout.old} stays warm for {plan.keep_warm:g} s; `glmctl retire` ends that")
        return
    see_off(context, rollout.old, plan.drain)
    if rollout.was_cut:
        raise rollout.was_cut


def see_off(context: Context, slot: str, drain_for: float) -> None:
    """Let `slot` finish, then stop its unit, whatever happens. Raises DrainCut."""
    try:
        drain(context, slot, drain_for)
    finally:
        context.systemd.stop(context.host.unit(slot))


def drain(context: Context, slot: str, seconds: float) -> None:
    """Wait until `slot` holds no connection and no request; at the deadline cut what is left and raise DrainCut."""
    deadline = time.monotonic() + seconds
    while held := holding(context.host, slot):
        in_flight = sum(one.in_flight for one in held)
        if time.monotonic() >= deadline:
            context.systemd.kill_main(context.host.unit(slot), "QUIT")
            wait_for(lambda: not holding(context.host, slot), _CUT)
            raise DrainCut.of(in_flight, slot, seconds)
        context.display.progress(f"{in_flight} in flight, {sum(one.connections for one in held)} connections")
        time.sleep(LOOK)
