"""The rollout by overlap or swap, and the rollback."""

from __future__ import annotations

from contextlib import nullcontext, suppress

from deploy.errors import DrainCut
from deploy.journal.journal import Journal, begin
from deploy.journal.record import Record
from deploy.rollout import hooks, weights
from deploy.rollout.bake import bake
from deploy.rollout.canary import canary
from deploy.rollout.candidate import prepare, remove, start, verify
from deploy.rollout.cutover import cutover, rename_back, switch_to_warm
from deploy.rollout.frame import recorded
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.preflight import preflight
from deploy.rollout.retire import complete, retire, retire_slot
from deploy.rollout.rollback_request import RollbackRequest
from deploy.rollout.swap import vacate
from deploy.rollout.waiting import is_warm

__all__ = ["deploy", "rollback", "undo"]


def deploy(context: Context, plan: Plan) -> Record:
    """Start `plan.version` in the idle slot, verify it, move every client to it, and retire the old slot.

    Raises Refused, NotReady (the old version is live), RolledBack, DrainCut or Locked.
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


def undo(rollout: Rollout) -> bool:
    """Remove the candidate before the bake, make the old slot live again during it, retire the old slot after it."""
    match rollout.record.phase:
        case "retire":
            complete(rollout)
            return False
        case "bake":
            _go_back(rollout)
        case _:
            remove(rollout)
    return True


def _go_back(rollout: Rollout) -> None:
    if rollout.old is None or rollout.context.slots.live != rollout.candidate:
        return  # `glmctl rollback` has renamed `live` meanwhile; both slots stay warm
    rename_back(rollout, rollout.old)
    with suppress(DrainCut):
        retire_slot(rollout.context, rollout.candidate, rollout.plan.drain)


def rollback(context: Context, plan: Plan) -> Record:
    """Make the previous version live again: by the rename if its slot is warm, else by a deploy.

    A deploy of another process that is in its bake ends with it. Raises Refused, NotReady or Locked.
    """
    journal = Journal(context.host)
    if not is_warm(context, context.slots.idle, plan.version):
        in_bake = (one for one in journal.unfinished() if one.phase == "bake" and one.previous == plan.version)
        swapped = next(in_bake, None)
        if swapped and journal.is_locked:
            return RollbackRequest(context, swapped).wait()
        return deploy(context, plan)
    with journal.switching():
        is_baking = any(one.phase == "bake" and one.slot == context.slots.live for one in journal.unfinished())
        with nullcontext() if is_baking else journal.lock():
            rollout = Rollout.begin(context, plan, begin(journal, "rollback", plan.version, context.slots.idle))
            with recorded(rollout, _is_not_live):
                switch_to_warm(rollout)
                hooks.run(rollout, "on_rollback")
            return rollout.record


def _is_not_live(rollout: Rollout) -> bool:
    """Undo nothing: the rename is the only change, and `switch_to_warm` takes it back if the gate stays closed."""
    return rollout.context.slots.live != rollout.candidate
