"""What a killed controller left behind: said in plain words, and ended cleanly by the next call."""

from __future__ import annotations

import contextlib
import time

from deploy.errors import DrainCut, Locked
from deploy.journal.accounts import current
from deploy.journal.journal import BEFORE_CUTOVER, Entry, Journal, Record
from deploy.rollout import phases
from deploy.rollout import weights as inplace
from deploy.rollout.plan import Context, Plan, Rollout

_LOOK = 0.2


def recover(context: Context) -> list[str]:
    """End every rollout whose controller died; returns a line on each. Does nothing while another one works."""
    journal = Journal(context.host)
    if not journal.is_ours or not journal.unfinished():
        return []
    try:
        with journal.lock():
            return [_end(context, journal, record) for record in journal.unfinished()]
    except Locked:
        return []


def _end(context: Context, journal: Journal, record: Record) -> str:
    began = f"the {record.kind} of {record.version} was interrupted in {record.phase}"
    plan = Plan(record.version, kind=record.kind, strategy=record.strategy)
    rollout = Rollout.resume(context, plan, Entry(journal, record))
    outcome, what = _finish(rollout)
    rollout.end(outcome, reason=f"interrupted in {record.phase}: {what}")
    return f"{began}: {what}"


def _finish(rollout: Rollout) -> tuple[str, str]:
    context, record = rollout.context, rollout.entry.record
    live = context.slots.live
    if record.kind == "reload":
        return _finish_reload(rollout)
    if record.strategy == "weights":
        return inplace.finish(rollout)
    if record.phase in BEFORE_CUTOVER or (record.phase == "cutover" and live != record.slot):
        phases.undo(rollout)
        serving = f"{context.slots.version(live)} serves as before" if live else "nothing is live yet"
        return "interrupted", f"{record.slot} was stopped, {serving}"
    if record.phase == "rollback":
        target = record.slot if record.kind == "rollback" else record.previous_slot
        if target and rollout.swaps:
            phases.revive(rollout, target)
        if target and live != target:
            context.slots.go_live(target)
        return "rolled back", f"{context.slots.version(target) if target else 'nothing'} serves"
    if live != record.slot:
        return "rolled back", f"{context.slots.version(live) if live else 'nothing'} serves"
    if _is_dead(rollout) and record.previous_slot and rollout.swaps:
        phases.revive(rollout, record.previous_slot)
    if _is_dead(rollout) and record.previous_slot and context.host.http_socket(record.previous_slot).exists():
        previous = current(context.host, record.previous_slot)
        if previous is not None and previous.serves:
            context.slots.go_live(record.previous_slot)
            return "rolled back", f"{record.version} does not serve, {previous.version} is live again"
    with contextlib.suppress(DrainCut):
        phases.retire(rollout)
    return "done", f"{record.version} serves, the old slot was retired"


def _is_dead(rollout: Rollout) -> bool:
    one = current(rollout.context.host, rollout.candidate)
    return one is None or not one.serves


def _finish_reload(rollout: Rollout) -> tuple[str, str]:
    context, record = rollout.context, rollout.entry.record
    unit = context.host.unit(record.slot)
    while context.systemd.state(unit).active == "reloading":  # systemd goes on with it; only we were killed
        context.display.progress(f"{unit} is still being handed over")
        time.sleep(_LOOK)
    one = current(context.host, record.slot)
    if one is not None and one.version == record.version:
        return "done", f"{record.version} serves"
    context.slots.point(record.slot, record.slot_held)
    return "interrupted", f"{one.version if one else 'nothing'} serves as before"
