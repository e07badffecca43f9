"""Handing the live slot over in place (USR2), as a rollout with a journal and a receipt."""

from __future__ import annotations

import time
from contextlib import closing

from deploy.errors import NotReady, Refused
from deploy.journal.accounts import born_since, current, generations
from deploy.journal.journal import Journal, Record, begin
from deploy.rollout.plan import Plan, Rollout, Tools
from deploy.rollout.preflight import require_units
from deploy.rollout.slots import release_target

_LOOK = 0.05


def reload(tools: Tools, plan: Plan) -> Record:
    """Beget a new generation in the live slot; raises Refused, NotReady (the old one serves on) or Locked."""
    require_units(tools)
    live = tools.slots.live
    if live is None:
        raise Refused("no slot is live", hint="`glmctl deploy VERSION` brings one up")
    version = plan.version or tools.slots.version(live) or ""
    unit = tools.host.unit(live)
    if tools.systemd.state(unit).active != "active":
        raise Refused(f"{unit} does not run", hint=f"`systemctl start {unit}`")
    journal = Journal(tools.host)
    with journal.lock():
        tools.releases.verify(version)
        rollout = Rollout.begin(tools, Plan(version, kind="reload"), begin(journal, "reload", version, live))
        rollout.enter("reload", f"{unit}: a new generation of {version}")
        tools.slots.point(live, release_target(version))
        known = {one.generation for one in generations(tools.host, live)}
        with closing(tools.systemd.reloading(unit)) as job:
            while not job.done:
                tools.display.progress(_progress(tools, live, known))
                time.sleep(_LOOK)
        if job.succeeded:
            return rollout.end("done")
        tools.slots.point(live, rollout.entry.record.slot_held)
        born = born_since(tools.host, live, known)
        why = next((one.error for one in reversed(born) if one.error), None) or tools.systemd.state(unit).status
        rollout.end("not ready", reason=why)
        serving = current(tools.host, live)
        raise NotReady(
            f"the new generation of {version} did not become ready: {why}",
            hint=f"{serving.version if serving else 'nothing'} serves on",
        )


def _progress(tools: Tools, slot: str, known: set[int]) -> str:
    born = born_since(tools.host, slot, known)
    if not born:
        return "starting"
    if not born[-1].ready:
        return born[-1].load
    left = [one for one in generations(tools.host, slot) if one.generation in known and one.living]
    return f"{sum(one.in_flight for one in left)} in flight in the old generation"
