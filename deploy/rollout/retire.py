"""The end of a slot: its requests finish, its unit is stopped, and its memory is free."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deploy.display import count
from deploy.errors import Degraded, DrainCut, Refused
from deploy.journal.journal import Journal
from deploy.rollout.frozen import FrozenWorkers
from deploy.rollout.plan import Context, Rollout
from deploy.rollout.waiting import POLL, undrained, wait_for
from service.contract.generations import current

__all__ = ["SlotIsLive", "complete", "retire", "retire_idle_slot", "retire_slot", "stop_idle"]

_QUIT = 10.0  # seconds for a master that was sent SIGQUIT to end


class SlotIsLive(Refused):
    """A slot that was to be stopped is live, or has become live."""


def retire(rollout: Rollout) -> None:
    """Retire the old slot, or schedule that with --keep-warm.

    Raises DrainCut, and Degraded if the old slot has become live again.
    """
    plan, context = rollout.plan, rollout.context
    if rollout.old is None:
        return
    if _stays_warm(rollout):
        context.timers.schedule_retirement(rollout.old, rollout.record.previous or "", plan.keep_warm)
        context.display.line(f"{'':10}{rollout.old} stays warm for {plan.keep_warm:g} s; `glmctl retire` ends that")
        return
    try:
        retire_slot(context, rollout.old, plan.drain, rollout.frozen_in(rollout.old))
    except SlotIsLive as error:
        raise Degraded(str(error), is_undone=True) from error
    if rollout.drain_cut:
        raise rollout.drain_cut


def complete(rollout: Rollout) -> None:
    """Complete a `retire` that was interrupted: stop the old slot's unit, unless it stays warm or is live again."""
    if rollout.old and not _stays_warm(rollout):
        with suppress(SlotIsLive):
            stop_idle(rollout.context, rollout.old, rollout.frozen_in(rollout.old))


def retire_idle_slot(context: Context, slot: str, version: str | None, drain: float) -> str | None:
    """Retire `slot`; returns the version that it served, None if it served nothing, or another than `version`.

    Raises SlotIsLive, Locked, and DrainCut.
    """
    with Journal(context.host).lock():
        with _while_idle(context, slot):
            found = current(context.host.runtime, slot)
        if found is None or version not in {None, found.version}:
            return None
        context.timers.cancel_retirements()
        retire_slot(context, slot, drain)
        return found.version


def retire_slot(context: Context, slot: str, drain: float, frozen: FrozenWorkers | None = None) -> None:
    """Wait at most `drain` seconds for the slot's requests and connections, then stop its unit.

    Frozen workers are not waited for. Raises DrainCut, and SlotIsLive if it becomes live meanwhile: then it is left as
    it is.
    """
    frozen = frozen or FrozenWorkers(context.host, context.systemd, slot)
    try:
        _drain(context, slot, drain, frozen)
    finally:
        stop_idle(context, slot, frozen)
    if frozen.lost:
        raise DrainCut.of_frozen(frozen.lost, slot)


def stop_idle(context: Context, slot: str, frozen: FrozenWorkers | None = None) -> None:
    """Stop the unit of `slot`, whose frozen workers are not waited for; raises SlotIsLive if it is live."""
    frozen = frozen or FrozenWorkers(context.host, context.systemd, slot)
    with _while_idle(context, slot):
        frozen.end()
        context.systemd.stop(context.host.unit(slot), frozen.look)


def _stays_warm(rollout: Rollout) -> bool:
    return rollout.plan.keep_warm > 0 and not rollout.is_swap


def _drain(context: Context, slot: str, seconds: float, frozen: FrozenWorkers) -> None:
    deadline = time.monotonic() + seconds
    while (left := undrained(context.host, slot)) and context.slots.live != slot:
        if frozen.look():
            time.sleep(POLL)
            continue
        in_flight = sum(one.in_flight for one in left)
        if time.monotonic() >= deadline:
            with _while_idle(context, slot):
                context.systemd.kill_main(context.host.unit(slot), "QUIT")
            wait_for(lambda: not undrained(context.host, slot), _QUIT)
            raise DrainCut.of(in_flight, slot, seconds)
        connections = sum(one.connections for one in left)
        context.display.progress(f"{in_flight} in flight, {count(connections, 'connection')}")
        time.sleep(POLL)


@contextmanager
def _while_idle(context: Context, slot: str) -> Iterator[None]:
    """Hold the lock on the rename of `live`, so that `slot` cannot become live; raises SlotIsLive if it is."""
    with Journal(context.host).switching():
        if context.slots.live == slot:
            raise SlotIsLive(f"{slot} is live", hint="`glmctl status` shows both slots")
        yield
