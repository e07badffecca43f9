"""The rollout by overlap or swap."""

from __future__ import annotations

from deploy.journal.journal import Journal, begin
from deploy.journal.record import Record
from deploy.rollout import weights
from deploy.rollout.bake import bake
from deploy.rollout.canary import canary
from deploy.rollout.candidate import prepare, start, verify
from deploy.rollout.cutover import cutover
from deploy.rollout.frame import recorded
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.preflight import preflight
from deploy.rollout.retire import retire
from deploy.rollout.swap import vacate
from deploy.rollout.undo import undo

__all__ = ["deploy"]


def deploy(context: Context, plan: Plan) -> Record:
    """Start `plan.version` in the idle slot, verify it, move every client to it, and retire the old slot.

    Raises Refused, NotReady (the old version is live), RolledBack, Interrupted, DrainCut or Locked.
    """
    if plan.strategy == "weights":
        return weights.deploy(context, plan)
    journal = Journal(context.host)
    with journal.lock():
        entry = begin(journal, plan.kind, plan.version, context.slots.idle, plan.strategy)
        rollout = Rollout.begin(context, plan, entry)
        with recorded(rollout, undo):
            preflight(rollout)
            prepare(rollout)
            vacate(rollout)
            start(rollout)
            verify(rollout)
            canary(rollout)
            cutover(rollout)
            bake(rollout)
            retire(rollout)
        return rollout.record
