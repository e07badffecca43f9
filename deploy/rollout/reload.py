"""The reload: the live slot is handed over to a new generation in place (USR2)."""

from __future__ import annotations

import time

from deploy.errors import Refused
from deploy.journal.journal import Journal, begin
from deploy.journal.record import Record
from deploy.rollout.frame import recorded
from deploy.rollout.new_generation import NewGeneration
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.preflight import require_units
from deploy.rollout.waiting import UNIT_POLL
from service.contract.slots import release_target

__all__ = ["await_end", "reload"]


def reload(context: Context, plan: Plan) -> Record:
    """Start a new generation in the live slot; it takes every connection over, then the old one ends.

    Raises Refused, NotReady (the old generation serves on) or Locked.
    """
    require_units(context)
    live = context.slots.live
    if live is None:
        raise Refused("no slot is live", hint="`glmctl deploy VERSION` brings one up")
    version = plan.version or context.slots.version(live) or ""
    unit = context.host.unit(live)
    if context.systemd.state(unit).active != "active":
        raise Refused(f"{unit} is not running", hint=f"{' '.join(context.systemd.argv('start', unit))}")
    journal = Journal(context.host)
    with journal.lock():
        context.releases.ensure(version)
        entry = begin(journal, "reload", version, live)
        rollout = Rollout.begin(context, Plan(version, kind="reload"), entry)
        new = NewGeneration(context, live, version)

        def undo(rollout: Rollout) -> bool:
            await_end(rollout)
            if new.found is not None and new.found.is_serving:
                return False
            context.slots.point(live, rollout.record.slot_held)
            return True

        with recorded(rollout, undo):
            rollout.enter("reload", f"{unit}: a new generation of {version}")
            context.slots.point(live, release_target(version))
            try:
                new.wait(context.systemd.reloading(unit), lambda: _progress(new))
            finally:
                rollout.record.load = new.found.load if new.found else {}
        return rollout.record


def await_end(rollout: Rollout) -> None:
    """Wait until systemd has ended the reload, which it completes without the controller too."""
    context = rollout.context
    while context.systemd.state(rollout.unit).active == "reloading":
        context.display.progress(f"{rollout.unit} is still reloading")
        time.sleep(UNIT_POLL)


def _progress(new: NewGeneration) -> str:
    if new.found is None or not new.found.ready:
        return new.load
    return f"{sum(one.in_flight for one in new.others)} in flight in the old generation"
