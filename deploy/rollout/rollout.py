"""A rollout: preflight, prepare, start, verify, canary, cutover, bake, retire; and the way back."""

from __future__ import annotations

from contextlib import nullcontext, suppress

from deploy.errors import Degraded, DrainCut, GlmError, NotReady, Refused, RolledBack
from deploy.journal.journal import Journal, Record, begin
from deploy.rollout import hooks, phases
from deploy.rollout import weights as inplace
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.rollback_request import Wish
from deploy.rollout.warmth import is_warm


def deploy(context: Context, plan: Plan) -> Record:
    """Bring `plan.version` up beside the live slot, prove it, move every client over, and see the old one off.

    Raises Refused, NotReady (live untouched), RolledBack, DrainCut, Locked.
    """
    if plan.strategy == "weights":
        return inplace.deploy(context, plan)
    journal = Journal(context.host)
    with journal.lock():
        rollout = Rollout.begin(
            context, plan, begin(journal, plan.kind, plan.version, context.slots.idle, plan.strategy)
        )
        try:
            phases.preflight(rollout)
            phases.prepare(rollout)
            phases.vacate(rollout)
            phases.start(rollout)
            phases.verify(rollout)
            phases.canary(rollout)
            phases.cutover(rollout)
        except Degraded as verdict:
            phases.undo(rollout)
            hooks.run(rollout, "on_rollback")
            rollout.end("rolled back", reason=str(verdict))
            raise RolledBack(
                f"{plan.version} had a share of the requests and has none any more: {verdict}"
            ) from verdict
        except (GlmError, KeyboardInterrupt) as error:
            phases.undo(rollout)
            rollout.end(_outcome(error), reason=str(error) or "interrupted from the keyboard")
            raise
        try:
            phases.bake(rollout)
            phases.retire(rollout)
        except Degraded as verdict:
            if not verdict.by_operator:
                go_back(rollout)
                hooks.run(rollout, "on_rollback")
            rollout.end("rolled back", reason=str(verdict))
            raise RolledBack(f"{plan.version} was live and is so no more: {verdict}") from verdict
        except DrainCut as cut:
            rollout.end("done", reason=str(cut))
            raise
        return rollout.end("done")


def go_back(rollout: Rollout) -> None:
    """The candidate turned out worse: the cutover backwards, and the candidate's end."""
    phases.rollback(rollout)
    with suppress(DrainCut):
        phases.see_off(rollout.context, rollout.candidate, rollout.plan.drain)


def rollback(context: Context, plan: Plan) -> Record:
    """Go back to the slot that served before: by one rename where it is warm, else by bringing it up again.

    A deploy that bakes meanwhile, in another terminal, ends with it. Raises Refused, NotReady, Locked.
    """
    journal = Journal(context.host)
    if not is_warm(context, context.slots.idle, plan.version):
        swapped = next(
            (one for one in journal.unfinished() if one.phase == "bake" and one.previous == plan.version), None
        )
        return Wish(context, swapped).come_true() if swapped and journal.is_locked else deploy(context, plan)
    with journal.switching():
        baking = any(one.phase == "bake" and one.slot == context.slots.live for one in journal.unfinished())
        with nullcontext() if baking else journal.lock():
            back = Rollout.begin(context, plan, begin(journal, "rollback", plan.version, context.slots.idle))
            phases.switch_back(back)
            hooks.run(back, "on_rollback")
            return back.end("done")


def _outcome(error: BaseException) -> str:
    named = {Refused: "refused", NotReady: "not ready", KeyboardInterrupt: "interrupted"}
    return next((name for kind, name in named.items() if isinstance(error, kind)), "failed")
