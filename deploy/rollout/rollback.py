"""The operator's rollback: to the version that served before, or to another one."""

from __future__ import annotations

from contextlib import ExitStack, suppress

from deploy.errors import GlmError, Refused, Unrecorded
from deploy.journal.journal import Journal, begin
from deploy.journal.record import Record
from deploy.journal.served import condemned, last_condemned, previous_version
from deploy.rollout import hooks
from deploy.rollout.cutover import switch_to_warm
from deploy.rollout.frame import recorded
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.recovery import recover, resume
from deploy.rollout.rollback_request import RollbackRequest
from deploy.rollout.rollout import deploy
from deploy.rollout.waiting import is_open, is_warm, wait_for

__all__ = ["is_at_hand", "rollback", "target"]

_CLOSE = 5.0  # seconds for the slot that was live to close its gate, which takes 20 ms, or to be found frozen


def target(context: Context, version: str | None, *, force: bool) -> str:
    """Return the version to go back to: `version`, or the one that served last and was not found worse.

    Raises Refused if there is none, if it is live, or if `version` was found worse and `force` is not given.
    """
    live = context.slots.version(context.slots.live) if context.slots.live else None
    if live is None:
        raise Refused("there is nothing to go back to", hint="`glmctl status` shows both slots")
    if version == live:
        raise Refused(f"{version} is live already", hint="`glmctl release list` lists the versions")
    records = Journal(context.host).records()
    if version is not None:
        if (found := condemned(records, version)) and not force:
            raise Refused(f"{version} was found worse: {_finding(found)}", hint="--force makes it live all the same")
        return version
    if (previous := previous_version(records, live)) is not None:
        return previous
    reason = ""
    if found := last_condemned(records, live):
        reason = f"; {found.version} was found worse: {_finding(found)}"
    raise Refused(
        f"there is nothing to go back to: no other version has served that was not rolled back itself{reason}",
        hint=f"`glmctl rollback {found.version if found else 'VERSION'}{' --force' if found else ''}` names one",
    )


def is_at_hand(context: Context, version: str) -> bool:
    """Return whether `version` is loaded in the idle slot, or the deploy that replaced it is in its bake."""
    is_baking = any(one.previous == version for one in _baking(context))
    return is_baking or is_warm(context, context.slots.idle, version)


def rollback(context: Context, plan: Plan) -> Record:
    """Make `plan.version` live again: by the rename if its slot is warm, else by a deploy.

    A deploy of another process that is in its bake ends with it. Raises Refused, NotReady, Interrupted or Locked.
    """
    journal = Journal(context.host)
    while True:
        with ExitStack() as locks:
            if not (is_shared := _is_bake_watched(journal)):
                locks.enter_context(journal.lock())
            locks.enter_context(journal.switching())  # the deploy that bakes neither ends its bake nor stops a slot
            if is_shared and not _is_bake_watched(journal):
                continue  # it has ended meanwhile, and another rollout may begin
            baking = _baking(context)
            if is_warm(context, context.slots.idle, plan.version):
                return _rename(context, plan)
            break
    baking = [one for one in baking if one.previous == plan.version]
    if not baking:
        with suppress(Unrecorded):
            recover(context)
        return deploy(context, plan)
    return _end_bake(context, baking[0])


def _is_bake_watched(journal: Journal) -> bool:
    """Return whether a controller is in a bake; after a rollback it may still be, and look only at its next turn."""
    return any(one.phase == "bake" for one in journal.unfinished()) and journal.is_locked


def _baking(context: Context) -> list[Record]:
    return [one for one in Journal(context.host).unfinished() if one.phase == "bake" and one.slot == context.slots.live]


def _end_bake(context: Context, record: Record) -> Record:
    """Have a deploy rolled back that is in its bake, by its controller or, if that is dead, by this process.

    The slot that it goes back to has to be loaded again. Raises GlmError if the candidate stays live.
    """
    request = RollbackRequest(context, record)
    if Journal(context.host).is_locked:
        record = request.wait()
    else:
        request.make()
        record = next(ended.record for ended in resume(context) if ended.record.id == record.id)
        request.withdraw()
    if record.outcome != "rolled back":
        raise GlmError(f"{record.version} was not rolled back: {record.reason or 'its bake had just ended'}")
    return record


def _rename(context: Context, plan: Plan) -> Record:
    entry = begin(Journal(context.host), "rollback", plan.version, context.slots.idle)
    rollout = Rollout.begin(context, plan, entry)
    with recorded(rollout, _is_not_live):
        switch_to_warm(rollout)
        if rollout.old:
            _end_frozen(rollout, rollout.old)
        hooks.run(rollout, "on_rollback")
    return rollout.record


def _end_frozen(rollout: Rollout, slot: str) -> None:
    """Wait until the workers of `slot` have closed their gates; if they are frozen, stop the slot instead."""
    host, systemd, frozen = rollout.context.host, rollout.context.systemd, rollout.frozen_in(slot)
    wait_for(lambda: frozen.look() or not is_open(host, slot), _CLOSE)
    frozen.end()
    if frozen.has_killed:
        rollout.context.display.line(f"{slot} was frozen, and is stopped")
        systemd.stop(host.unit(slot), frozen.look)


def _is_not_live(rollout: Rollout) -> bool:
    """Undo nothing: the rename is the only change, and `switch_to_warm` takes it back if the slot does not respond."""
    return rollout.context.slots.live != rollout.candidate


def _finding(record: Record) -> str:
    return f"{record.reason or record.outcome} ({record.id})"
