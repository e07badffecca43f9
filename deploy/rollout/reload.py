"""Handing the live slot over in place (USR2), as a rollout with a journal and a receipt."""

from __future__ import annotations

import time
from contextlib import closing

from deploy.errors import NotReady, Refused
from deploy.journal.accounts import born_since, current, generations
from deploy.journal.journal import Journal, Record, begin
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.preflight import require_units
from deploy.rollout.slots import release_target

_LOOK = 0.05


def reload(context: Context, plan: Plan) -> Record:
    """Beget a new generation in the live slot; raises Refused, NotReady (the old one serves on) or Locked."""
    require_units(context)
    live = context.slots.live
    if live is None:
        raise Refused("no slot is live", hint="`glmctl deploy VERSION` brings one up")
    version = plan.version or context.slots.version(live) or ""
    unit = context.host.unit(live)
    if context.systemd.state(unit).active != "active":
        raise Refused(f"{unit} does not run", hint=f"`systemctl start {unit}`")
    journal = Journal(context.host)
    with journal.lock():
        context.releases.verify(version)
        rollout = Rollout.begin(context, Plan(version, kind="reload"), begin(journal, "reload", version, live))
        rollout.enter("reload", f"{unit}: a new generation of {version}")
        context.slots.point(live, release_target(version))
        known = {one.generation for one in generations(context.host, live)}
        with closing(context.systemd.reloading(unit)) as job:
            while not job.done:
                context.display.progress(_progress(context, live, known))
                time.sleep(_LOOK)
        if job.succeeded:
            return rollout.end("done")
        context.slots.point(live, rollout.entry.record.slot_held)
        born = born_since(context.host, live, known)
        why = next((one.error for one in reversed(born) if one.error), None) or context.systemd.state(unit).status
        rollout.end("not ready", reason=why)
        serving = current(context.host, live)
        raise NotReady(
            f"the new generation of {version} did not become ready: {why}",
            hint=f"{serving.version if serving else 'nothing'} serves on",
        )


def _progress(context: Context, slot: str, known: set[int]) -> str:
    born = born_since(context.host, slot, known)
    if not born:
        return "starting"
    if not born[-1].ready:
        return born[-1].load
    left = [one for one in generations(context.host, slot) if one.generation in known and one.living]
    return f"{sum(one.in_flight for one in left)} in flight in the old generation"
