"""The way back of a rollout by overlap or swap, as far as it has come."""

from __future__ import annotations

from contextlib import suppress

from deploy.errors import DrainCut, GlmError, NotReady
from deploy.rollout.candidate import remove
from deploy.rollout.cutover import rename
from deploy.rollout.liveness import Liveness, require_answer
from deploy.rollout.plan import Rollout
from deploy.rollout.retire import SlotIsLive, complete, retire_slot, stop_idle
from deploy.rollout.swap import revive, stop_workers
from deploy.systemd import listener
from service.contract.canary_file import CanaryFile

__all__ = ["undo"]


def undo(rollout: Rollout) -> bool:
    """Remove the candidate before the cutover, make the old slot live again after it, complete the retirement.

    Returns False if the candidate stays live; `rollout.kept` has the reason, except in a retirement.
    """
    is_live = rollout.context.slots.live == rollout.candidate
    match rollout.record.phase:
        case "retire":
            complete(rollout)
            return False
        case "bake" if not is_live:
            return True  # `glmctl rollback` has renamed `live`; both slots stay warm
        case "cutover" | "bake" | "rollback" if rollout.old and (is_live or rollout.record.phase == "rollback"):
            return _go_back(rollout, rollout.old)
        case _:
            remove(rollout)
            return True


def _go_back(rollout: Rollout, old: str) -> bool:
    """Make the old slot live again once it serves, then retire the candidate.

    Returns False, and stops the old slot, if it does not serve. Raises NotReady if it serves and does not respond
    although the public socket listens.
    """
    context, switching = rollout.context, rollout.entry.journal.switching
    CanaryFile(context.host.runtime).remove()  # after the rename back it would hold again
    if rollout.record.phase != "rollback":
        with switching():
            if context.slots.live != rollout.candidate:
                return True
            rollout.enter("rollback", f"live -> {old}")
    if context.slots.live == rollout.candidate:
        try:
            _load_again(rollout, old)
        except GlmError as error:
            _keep(rollout, old, str(error))
            return False
    with switching():
        if context.slots.live == rollout.candidate:
            _rename_back(rollout, old)
    with suppress(DrainCut, SlotIsLive):
        retire_slot(context, rollout.candidate, rollout.drain, rollout.frozen_in(rollout.candidate))
    return True


def _rename_back(rollout: Rollout, old: str) -> None:
    try:
        rename(rollout, old, Liveness(rollout.context.host, old))
    except NotReady:
        fault = listener.fault_of(rollout.context.host)
        if fault is None or not fault.is_public:  # else no slot can respond, and `live` leads to the old one
            raise


def _load_again(rollout: Rollout, old: str) -> None:
    if rollout.is_swap:
        stop_workers(rollout, rollout.candidate)
    revive(rollout, old)
    require_answer(rollout.context.host, old)


def _keep(rollout: Rollout, old: str, reason: str) -> None:
    """Leave the candidate live, because the old slot does not serve."""
    rollout.kept = f"it stays live, because {reason}"
    with suppress(SlotIsLive):
        stop_idle(rollout.context, old, rollout.frozen_in(old))  # which may crash again and again, and hold memory
    if rollout.is_swap:
        revive(rollout, rollout.candidate)
