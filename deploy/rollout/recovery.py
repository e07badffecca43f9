"""Recovery: the next command ends the rollouts whose controllers were killed."""

from __future__ import annotations

import contextlib

from deploy.errors import DrainCut, Locked
from deploy.journal.journal import Entry, Journal
from deploy.journal.record import BEFORE_CUTOVER, Record
from deploy.rollout import candidate, reload, weights
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.retire import retire
from deploy.rollout.swap import restart_workers
from service.contract.generations import current

__all__ = ["recover"]


def recover(context: Context) -> list[str]:
    """End every rollout whose controller has died; returns a line on each. Does nothing while a rollout is running."""
    journal = Journal(context.host)
    if not journal.is_writable or not journal.unfinished():
        return []
    try:
        with journal.lock():
            return [_end(context, journal, record) for record in journal.unfinished()]
    except Locked:
        return []


def _end(context: Context, journal: Journal, record: Record) -> str:
    interrupted = f"the {record.kind} of {record.version} was interrupted in {record.phase}"
    plan = Plan(record.version, kind=record.kind, strategy=record.strategy)
    rollout = Rollout.resume(context, plan, Entry(journal, record))
    phase = record.phase
    outcome, result = _finish(rollout)
    rollout.end(outcome, reason=f"interrupted in {phase}: {result}")
    return f"{interrupted}: {result}"


def _finish(rollout: Rollout) -> tuple[str, str]:
    """Complete or undo the rollout; returns the outcome and a text for the reason."""
    record = rollout.record
    if record.kind == "reload":
        return _finish_reload(rollout)
    if record.strategy == "weights":
        return _finish_weights(rollout)
    live = rollout.context.slots.live
    if record.phase in BEFORE_CUTOVER or (record.phase == "cutover" and live != record.slot):
        candidate.remove(rollout)
        serving = f"{_version(rollout, live)} serves as before" if live else "nothing is live"
        return "interrupted", f"{record.slot} was stopped, {serving}"
    if record.phase == "rollback":
        return _finish_rollback(rollout)
    if live != record.slot:
        return "rolled back", f"{_version(rollout, live)} serves"
    return _finish_live(rollout)


def _finish_reload(rollout: Rollout) -> tuple[str, str]:
    context, record = rollout.context, rollout.record
    reload.await_end(rollout)
    found = current(context.host.runtime, record.slot)
    if found is not None and found.version == record.version:
        return "done", f"{record.version} serves"
    context.slots.point(record.slot, record.slot_held)
    return "interrupted", f"{found.version if found else 'nothing'} serves as before"


def _finish_weights(rollout: Rollout) -> tuple[str, str]:
    if weights.undo(rollout):
        return "interrupted", f"{_version(rollout, rollout.record.slot)} serves as before"
    return "done", f"{rollout.record.version} serves"


def _finish_rollback(rollout: Rollout) -> tuple[str, str]:
    context, record = rollout.context, rollout.record
    target = record.slot if record.kind == "rollback" else record.previous_slot
    if target is None:
        return "rolled back", "nothing serves"
    if rollout.is_swap:
        restart_workers(rollout, target)
    if context.slots.live != target:
        context.slots.go_live(target)
    return "rolled back", f"{_version(rollout, target)} serves"


def _finish_live(rollout: Rollout) -> tuple[str, str]:
    """The candidate is live: retire the old slot, or go back to it if the candidate does not serve."""
    context, record = rollout.context, rollout.record
    if record.previous_slot and not _serves(rollout, record.slot):
        if rollout.is_swap:
            restart_workers(rollout, record.previous_slot)
        if _serves(rollout, record.previous_slot) and not _serves(rollout, record.slot):
            context.slots.go_live(record.previous_slot)
            version = _version(rollout, record.previous_slot)
            return "rolled back", f"{record.version} does not serve, {version} is live again"
    with contextlib.suppress(DrainCut):
        retire(rollout)
    return "done", f"{record.version} serves, the old slot was retired"


def _serves(rollout: Rollout, slot: str) -> bool:
    found = current(rollout.context.host.runtime, slot)
    return found is not None and found.is_serving


def _version(rollout: Rollout, slot: str | None) -> str:
    return (rollout.context.slots.version(slot) if slot else None) or "nothing"
