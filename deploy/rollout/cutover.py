"""The rename of `live`, forwards and backwards."""

from __future__ import annotations

import time

from deploy.errors import Degraded, GlmError, NotReady
from deploy.rollout import hooks
from deploy.rollout.canary_file import Share
from deploy.rollout.plan import Rollout
from deploy.rollout.slot_client import PublicSocket
from deploy.rollout.swap import leave, revive
from deploy.rollout.waiting import gate_follows, wait_for

_ASK_AGAIN = 0.002  # seconds between two probes of the public socket
_SWITCH = 10.0  # seconds within which the gate of the slot that `live` names must be open


def cutover(rollout: Rollout) -> None:
    """One rename. Every worker follows by itself, and so do the connections."""
    rollout.enter("cutover", f"live -> {rollout.candidate}")
    hooks.run(rollout, "pre_cutover")
    if rollout.old:
        rollout.probe.begin()
    with rollout.entry.journal.switching():
        share = Share(rollout.context.host)
        if (rollout.plan.canary or rollout.plan.mirror) and rollout.old and share.weight is None:
            raise Degraded("the operator aborted it", by_operator=True)
        _go(rollout, rollout.candidate)
        share.end()
    _require_open(rollout)
    rollout.probe.end()
    hooks.run(rollout, "post_cutover")


def rollback(rollout: Rollout) -> None:
    """The cutover backwards, in a rollout of ours; where one copy fits, the old version is loaded again first."""
    if rollout.old is None:
        raise GlmError("there is no slot to go back to")
    with rollout.entry.journal.switching():
        rollout.enter("rollback", f"live -> {rollout.old}")
        if rollout.swaps:
            leave(rollout, rollout.candidate)
            revive(rollout, rollout.old)
        _go(rollout, rollout.old)


def switch_back(rollout: Rollout) -> None:
    """A rollback to a warm slot: the rename and nothing else. Both slots stay warm, so that it can be taken back."""
    rollout.enter("rollback", f"live -> {rollout.candidate}, which is still warm")
    _go(rollout, rollout.candidate)
    _require_open(rollout)


def _go(rollout: Rollout, slot: str) -> None:
    """Rename `live`, then ask the public socket until the slot it names has answered."""
    listen = rollout.context.systemd.listen()
    public = PublicSocket(listen) if listen else None
    began = time.monotonic()
    rollout.context.slots.go_live(slot)
    while public and time.monotonic() - began < _SWITCH:
        rollout.probes += 1
        if public.slot() == slot:
            rollout.entry.record.switch_ms = round((time.monotonic() - began) * 1000, 1)
            return
        time.sleep(_ASK_AGAIN)


def _require_open(rollout: Rollout) -> None:
    if not wait_for(lambda: gate_follows(rollout.context.host, rollout.candidate), _SWITCH):
        if rollout.old:
            rollout.context.slots.go_live(rollout.old)
        raise NotReady(f"{rollout.candidate} did not open its gate within {_SWITCH:.0f} s")
