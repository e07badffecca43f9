"""The canary: the candidate answers a growing share of the requests before it is live."""

from __future__ import annotations

import time

from deploy.errors import Degraded, Refused
from deploy.journal.journal import Journal
from deploy.rollout.judge import Judge
from deploy.rollout.plan import Context, Rollout
from deploy.rollout.waiting import POLL, UNIT_POLL, in_flight, require_alive, require_healthy
from service.contract.canary_file import Canary, CanaryFile

__all__ = ["abort", "canary", "require_not_aborted"]


def canary(rollout: Rollout) -> None:
    """Run the canary steps; raises Degraded if the candidate is worse or dead, or `glmctl abort` ended the canary."""
    if rollout.old is None:
        return
    for step, weight in enumerate(rollout.plan.shares, start=1):
        _enter_step(rollout, step, weight)
        _watch(rollout, Judge(rollout, f"{weight:g} %", share=weight))


def require_not_aborted(rollout: Rollout) -> Canary:
    """Return the canary under way; raises Degraded if `glmctl abort` has removed its file."""
    found = CanaryFile(rollout.context.host.runtime).read()
    if found is None:
        raise Degraded("the operator aborted it", by_operator=True)
    return found


def abort(context: Context) -> Canary:
    """End the canary under way, and return its last step: the live slot answers all requests from now on.

    The rollout finds the file removed when it looks next, at the latest before it renames `live`. Raises Refused
    without a canary, and after that rename.
    """
    journal = Journal(context.host)
    with journal.switching():
        found = CanaryFile(context.host.runtime).remove()
        record = next(iter(reversed(journal.unfinished())), None)
        live = context.slots.live
    if found is not None:
        return found
    if record is None or not record.canary:
        raise Refused("no canary is under way", hint="`glmctl deploy VERSION --canary 10,50` starts one")
    if record.slot == live:
        raise Refused(f"it is too late: {record.version} is live", hint="`glmctl rollback` goes back")
    raise Refused(f"no canary is under way: the deploy of {record.version} is in {record.phase}")


def _enter_step(rollout: Rollout, step: int, weight: float) -> None:
    plan = rollout.plan
    mirrored = f", {plan.mirror:g} % of the live slot's are mirrored to it" if plan.mirror else ""
    with rollout.entry.journal.switching():  # `abort` holds it too: its removal of the file must not be overwritten
        if step > 1:
            require_not_aborted(rollout)
        rollout.enter("canary", f"{weight:g} % of the requests to {rollout.candidate}{mirrored}")
        CanaryFile(rollout.context.host.runtime).write(
            Canary(rollout.candidate, weight, step, sticky=plan.sticky, mirror=plan.mirror)
        )


def _watch(rollout: Rollout, judge: Judge) -> None:
    """Wait until the step has ended or was promoted."""
    length = rollout.plan.step
    next_update = time.monotonic()
    deadline = None if length is None else next_update + length
    is_over = False
    while not (is_over and judge.conclude()):
        now = time.monotonic()
        is_over = require_not_aborted(rollout).promoted or (deadline is not None and now >= deadline)
        require_alive(rollout)
        if now >= next_update:
            next_update = now + UNIT_POLL
            require_healthy(rollout)
            judge.update()
        left = "`glmctl promote` or `abort`" if deadline is None else f"{max(0.0, deadline - now):.0f} s left"
        rollout.context.display.progress(f"{left}, {in_flight(rollout)} in flight in the candidate, {judge}")
        time.sleep(POLL)
