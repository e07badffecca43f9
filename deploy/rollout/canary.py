"""The candidate while it answers a share of the requests, before it is live."""

from __future__ import annotations

import time

from deploy.errors import Degraded
from deploy.rollout.canary_file import Share
from deploy.rollout.judge import Judge
from deploy.rollout.plan import Rollout
from deploy.rollout.waiting import LOOK_AT_UNIT, in_flight, require_healthy


def canary(rollout: Rollout) -> None:
    """Let the candidate answer a growing share of the requests; raises Degraded when it should answer no more."""
    plan, share = rollout.plan, Share(rollout.context.host)
    if rollout.old is None:
        return
    for number, weight in enumerate(plan.shares, start=1):
        what = f"{weight:g} % of the requests to {rollout.candidate}"
        rollout.enter("canary", what + (f", {plan.mirror:g} % asked of it too" if plan.mirror else ""))
        judge = Judge(rollout, f"{weight:g} %")
        share.give(rollout.candidate, weight, number, plan.sticky, plan.mirror)
        deadline = None if plan.step is None else time.monotonic() + plan.step
        while not share.promoted and (deadline is None or time.monotonic() < deadline):
            if share.weight is None:
                raise Degraded("the operator aborted it", by_operator=True)
            require_healthy(rollout)
            judge.look()
            left = "`glmctl promote` or `abort`" if deadline is None else f"{deadline - time.monotonic():.0f} s left"
            rollout.context.display.progress(f"{left}, {in_flight(rollout)} in flight there, {judge}")
            time.sleep(LOOK_AT_UNIT)
        judge.conclude()
