"""Recovery: rollouts whose controllers died are ended by the next command that changes something, or resumed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deploy.display import duration
from deploy.errors import Degraded, DrainCut, GlmError, Interrupted, Locked
from deploy.journal.journal import Entry, Journal
from deploy.journal.record import BEFORE_CUTOVER, Record
from deploy.rollout import candidate, reload, weights
from deploy.rollout.bake import watch
from deploy.rollout.frame import recorded
from deploy.rollout.plan import Context, Rollout
from deploy.rollout.retire import retire
from deploy.rollout.undo import undo
from deploy.rollout.waiting import UNIT_POLL, is_warm
from service.contract.generations import current

__all__ = ["Ended", "recover", "resume"]

_LOAD = 1800.0  # seconds for a version that has served before to serve again, after a reboot


@dataclass(frozen=True)
class Ended:
    """A rollout of a dead controller that was ended."""

    record: Record
    text: str
    error: GlmError | None = None
    """RolledBack, DrainCut, or GlmError if the candidate stays live although it is worse."""


def recover(context: Context, *, bake_of: str | None = None) -> list[Ended]:
    """End every rollout whose controller has died. Does nothing while a rollout is running.

    An interrupted bake is judged by the responses so far; that of the version `bake_of` goes on to its planned end.
    """
    journal = Journal(context.host)
    if not journal.is_writable or not journal.unfinished():
        return []
    try:
        return resume(context, bake_of=bake_of, at_once=True)
    except Locked:
        return []


def resume(context: Context, *, bake_of: str | None = None, at_once: bool = False) -> list[Ended]:
    """End every rollout whose controller has died; an interrupted bake is watched to its planned end first.

    `at_once`: only the bake of the version `bake_of` is. Raises Locked while a rollout is running.
    """
    journal = Journal(context.host)
    with journal.lock():
        with journal.switching():  # a warm rollback holds nothing else, and has ended its record when it releases it
            records = journal.unfinished()
        # the newest first: a rollback decides which slot is live before the deploy that it rolled back is ended
        return [
            _end(Rollout.resume(context, Entry(journal, record)), at_once=at_once and record.version != bake_of)
            for record in reversed(records)
        ]


def _end(rollout: Rollout, *, at_once: bool) -> Ended:
    record = rollout.record
    text = f"the {record.kind} of {record.version} was interrupted in {record.phase}"
    rollout.guard()
    try:
        if _is_in_bake(rollout):
            result = _bake(rollout, at_once=at_once)
        else:
            outcome, result = _finish(rollout)
            rollout.end(outcome, reason=result)
    except GlmError as error:
        if record.outcome is None or isinstance(error, Interrupted):
            raise
        return Ended(record, f"{text}: {error}", error)
    return Ended(record, f"{text}: {result}")


def _is_in_bake(rollout: Rollout) -> bool:
    """Whether the candidate of a deploy is live and was not watched to the end of its bake."""
    record = rollout.record
    return (
        record.kind == "deploy"
        and record.strategy != "weights"
        and record.phase in {"cutover", "bake"}
        and record.previous_slot is not None
        and rollout.context.slots.live == record.slot
    )


def _bake(rollout: Rollout, *, at_once: bool) -> str:
    """Watch the candidate for the rest of its bake, and retire the old slot, as the dead controller would have."""
    record = rollout.record
    left = record.seconds_unwatched
    with recorded(rollout, undo):
        if left is None:
            left = 0.0 if at_once else rollout.plan.bake
            rollout.enter("bake", f"{record.slot} is watched for {left:g} s")
        if at_once and left:
            rollout.interruption = f"{rollout.interruption}, {duration(left)} before its end"
            left = 0.0
        rollout.context.display.phase("bake", f"{record.slot} is watched for another {duration(left)}")
        _await_load(rollout)
        watch(rollout, left)
        retire(rollout)
    return f"{record.version} serves, {record.previous_slot} was retired"


def _await_load(rollout: Rollout) -> None:
    """After a reboot, wait until the candidate's unit has loaded its model, or failed to."""
    systemd = rollout.context.systemd
    deadline = time.monotonic() + _LOAD
    while systemd.state(rollout.unit).active in {"activating", "reloading"} and time.monotonic() < deadline:
        time.sleep(UNIT_POLL)


def _finish(rollout: Rollout) -> tuple[str, str]:
    """Complete or undo the rollout; returns the outcome and a text for the reason."""
    record = rollout.record
    if record.kind == "reload":
        return _finish_reload(rollout)
    if record.strategy == "weights":
        return _finish_weights(rollout)
    if record.steps[0].phase == "rollback":
        return _finish_rename(rollout)
    if record.phase == "rollback":
        if not undo(rollout):
            return "done", f"{record.version} is to be rolled back, {rollout.kept}"
        return "rolled back", f"{_version(rollout, record.previous_slot)} serves"
    live = rollout.context.slots.live
    if live == record.slot:
        return _finish_retirement(rollout)
    serving = f"{_version(rollout, live)} serves as before" if live else "nothing is live"
    if record.phase in BEFORE_CUTOVER or record.phase == "cutover":
        candidate.remove(rollout)
        done = "nothing was changed" if record.phase == "preflight" else f"{record.slot} was stopped"
        return "interrupted", f"{done}, {serving}"
    record.by_operator = True
    return "rolled back", serving


def _finish_retirement(rollout: Rollout) -> tuple[str, str]:
    """Retire the old slot: the candidate is live, and its bake is over."""
    try:
        retire(rollout)
    except DrainCut as error:
        return "done", f"{rollout.record.version} serves, {error}"
    except Degraded as error:
        rollout.record.by_operator = True
        return "rolled back", str(error)
    return "done", f"{rollout.record.version} serves, the old slot was retired"


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


def _finish_rename(rollout: Rollout) -> tuple[str, str]:
    """Complete a rollback to a warm slot: its rename, if the slot is still warm."""
    context, record = rollout.context, rollout.record
    with rollout.entry.journal.switching():
        if context.slots.live != record.slot and is_warm(context, record.slot, record.version):
            context.slots.go_live(record.slot)
        live = context.slots.live
    if live == record.slot:
        return "done", f"{record.version} serves"
    return "interrupted", f"{_version(rollout, live)} serves as before"


def _version(rollout: Rollout, slot: str | None) -> str:
    return (rollout.context.slots.version(slot) if slot else None) or "nothing"
