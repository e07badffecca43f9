"""The rename of `live`, forwards and backwards."""

from __future__ import annotations

import time

from deploy.errors import Degraded, NotReady
from deploy.rollout import hooks
from deploy.rollout.canary import require_not_aborted
from deploy.rollout.liveness import Frozen, Liveness, answer_of, require_answer
from deploy.rollout.plan import Rollout
from deploy.rollout.slot_client import PublicSocket
from deploy.rollout.waiting import require_alive
from deploy.systemd import listener
from service.contract.canary_file import CanaryFile

__all__ = ["cutover", "rename", "switch_to_warm"]

_PROBE_PAUSE = 0.002  # seconds between two requests to the public socket
_TIMEOUT = 10.0  # seconds within which the slot that `live` names must respond on the public socket


def cutover(rollout: Rollout) -> None:
    """Make the candidate live. Every worker follows the rename by itself, and hands its connections over.

    Raises NotReady if a pre_cutover hook fails or the candidate does not respond on the public socket, and Degraded if
    the canary was aborted, or the candidate is frozen.
    """
    rollout.enter("cutover", f"live -> {rollout.candidate}")
    hooks.run(rollout, "pre_cutover", lambda: require_alive(rollout))
    if rollout.old:
        answer_of(rollout.probe.begin, lambda: require_alive(rollout))
    with rollout.entry.journal.switching():
        if rollout.old and rollout.plan.shares:
            require_not_aborted(rollout)
        try:
            rename(rollout, rollout.candidate, rollout.liveness)
        except Frozen as frozen:
            raise Degraded(str(frozen)) from frozen
        CanaryFile(rollout.context.host.runtime).remove()
    rollout.probe.end()
    hooks.begin(rollout, "post_cutover")
    if rollout.old is None:  # else they run during the bake
        hooks.finish(rollout)


def switch_to_warm(rollout: Rollout) -> None:
    """Make a warm slot live by the rename alone; the other slot stays warm, so that this can be taken back.

    Raises NotReady if the slot does not respond; the other one is live, or is so again, then.
    """
    rollout.enter("rollback", f"live -> {rollout.candidate}, which is still warm")
    require_answer(rollout.context.host, rollout.candidate)
    try:
        rename(rollout, rollout.candidate, rollout.liveness)
    except NotReady:
        if rollout.old:
            rollout.context.slots.go_live(rollout.old)
        raise


def rename(rollout: Rollout, slot: str, liveness: Liveness) -> None:
    """Rename `live`, then send requests to the public socket until the slot responds, and record how long it took.

    Raises NotReady if it does not within 10 s, and Frozen if it gives no sign of life; `live` leads to it then.
    """
    listen = rollout.context.systemd.listen()
    public = PublicSocket(listen, timeout=_TIMEOUT / 2) if listen else None
    began = time.monotonic()
    rollout.context.slots.go_live(slot)
    while public and time.monotonic() - began < _TIMEOUT:
        rollout.probes += 1
        if answer_of(public.slot, liveness.require) == slot:
            rollout.record.switch_ms = round((time.monotonic() - began) * 1000, 1)
            return
        time.sleep(_PROBE_PAUSE)
    fault = listener.fault_of(rollout.context.host)
    raise NotReady(
        f"{slot} did not respond on {listen or 'the public socket, which is not installed'} within "
        f"{_TIMEOUT:.0f} s of the rename" + (f": {fault.what}" if fault else ""),
        hint=fault.fix if fault else rollout.context.log_hint(rollout.context.host.unit(slot)),
    )
