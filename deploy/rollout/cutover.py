"""The rename of `live`, forwards and backwards."""

from __future__ import annotations

import time

from deploy.errors import NotReady
from deploy.rollout import hooks
from deploy.rollout.canary import require_not_aborted
from deploy.rollout.plan import Rollout
from deploy.rollout.slot_client import PublicSocket
from deploy.rollout.swap import restart_workers, stop_workers
from deploy.rollout.waiting import is_open, wait_for
from service.contract.canary_file import CanaryFile

__all__ = ["cutover", "rename_back", "switch_to_warm"]

_PROBE_PAUSE = 0.002  # seconds between two requests to the public socket
_TIMEOUT = 10.0  # seconds within which the slot that `live` names must open its gate


def cutover(rollout: Rollout) -> None:
    """Make the candidate live. Every worker follows the rename by itself, and hands its connections over.

    Raises NotReady if a pre_cutover hook fails or the candidate's gate stays closed, and Degraded if the canary was
    aborted.
    """
    rollout.enter("cutover", f"live -> {rollout.candidate}")
    hooks.run(rollout, "pre_cutover")
    if rollout.old:
        rollout.probe.begin()
    with rollout.entry.journal.switching():
        if rollout.old and rollout.plan.shares:
            require_not_aborted(rollout)
        _rename(rollout, rollout.candidate)
        CanaryFile(rollout.context.host.runtime).remove()
    _require_open(rollout)
    rollout.probe.end()
    hooks.run(rollout, "post_cutover")


def rename_back(rollout: Rollout, old: str) -> None:
    """Make the old slot live again; after a swap its version is loaded first."""
    with rollout.entry.journal.switching():
        rollout.enter("rollback", f"live -> {old}")
        if rollout.is_swap:
            stop_workers(rollout, rollout.candidate)
            restart_workers(rollout, old)
        _rename(rollout, old)


def switch_to_warm(rollout: Rollout) -> None:
    """Make a warm slot live by the rename alone; the other slot stays warm, so that this can be taken back."""
    rollout.enter("rollback", f"live -> {rollout.candidate}, which is still warm")
    _rename(rollout, rollout.candidate)
    _require_open(rollout)


def _rename(rollout: Rollout, slot: str) -> None:
    """Rename `live`, then send requests to the public socket until the slot responds, and record how long it took."""
    listen = rollout.context.systemd.listen()
    public = PublicSocket(listen) if listen else None
    began = time.monotonic()
    rollout.context.slots.go_live(slot)
    while public and time.monotonic() - began < _TIMEOUT:
        rollout.probes += 1
        if public.slot() == slot:
            rollout.record.switch_ms = round((time.monotonic() - began) * 1000, 1)
            return
        time.sleep(_PROBE_PAUSE)


def _require_open(rollout: Rollout) -> None:
    if not wait_for(lambda: is_open(rollout.context.host, rollout.candidate), _TIMEOUT):
        if rollout.old:
            rollout.context.slots.go_live(rollout.old)
        raise NotReady(
            f"{rollout.candidate} did not open its gate within {_TIMEOUT:.0f} s",
            hint=rollout.context.log_hint(rollout.unit),
        )
