"""Room for one copy: a slot whose workers leave while its master stays, with the clients that are idle, and back."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from deploy.errors import GlmError
from deploy.journal.accounts import Worker, current, generations
from deploy.rollout.plan import Rollout
from deploy.rollout.waiting import LOOK, LOOK_AT_UNIT, wait_for

_CUT = 10.0  # seconds for workers that were told to leave now
_LOADS = 1800.0  # seconds in which a version that has served before must serve again


def vacate(rollout: Rollout) -> None:
    """Where two copies do not fit: let the live slot's workers finish and leave, so that its memory is free.

    The gate is closed with them: who connects waits in the socket's backlog, and idle connections wait in that of the
    slot's handoff socket, which its master holds.
    """
    if not rollout.swaps or rollout.old is None:
        return
    rollout.enter("vacate", f"{rollout.old} finishes what it began and frees its memory; clients wait from now on")
    rollout.context.timers.start_guard()
    rollout.probe.begin()
    leave(rollout, rollout.old)


def leave(rollout: Rollout, slot: str) -> None:
    """Send the workers of `slot` home (WINCH) and wait until they are gone; at the drain deadline they are cut off."""
    context = rollout.context
    context.systemd.kill_main(context.host.unit(slot), "WINCH")
    deadline = time.monotonic() + rollout.plan.drain
    while workers := _workers(rollout, slot):
        in_flight = sum(worker.in_flight for worker in workers)
        if time.monotonic() >= deadline:
            for worker in workers:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGQUIT)
            wait_for(lambda: not _workers(rollout, slot), _CUT)
            rollout.cut(in_flight, slot)
            return
        context.display.progress(f"{in_flight} in flight, {sum(worker.connections for worker in workers)} connections")
        time.sleep(LOOK)


def revive(rollout: Rollout, slot: str) -> None:
    """Bring the workers of a vacated slot back (HUP), or its unit if that ended, and wait until it serves."""
    context = rollout.context
    unit = context.host.unit(slot)
    one = current(context.host, slot)
    if one is not None and one.serves and all(worker.phase != "leaving" for worker in one.living):
        return
    leave(rollout, slot)  # what still leaves has to be gone before the same is loaded again
    context.display.line(f"{'':10}{unit} loads {context.slots.version(slot)} again")
    deadline, ask_at = time.monotonic() + _LOADS, 0.0
    while (one := current(context.host, slot)) is None or not one.serves:
        if time.monotonic() >= deadline:
            raise GlmError(f"{unit} does not serve again", hint=f"its log: journalctl -u {unit}")
        if time.monotonic() >= ask_at and not (one and one.living):
            ask_at = time.monotonic() + LOOK_AT_UNIT * 4
            if context.systemd.state(unit).active == "active":
                context.systemd.kill_main(unit, "HUP")
            else:
                context.systemd.start_later(unit)
        context.display.progress(f"{one.load if one else 'starting'}, clients wait")
        time.sleep(LOOK)


def _workers(rollout: Rollout, slot: str) -> list[Worker]:
    return [worker for one in generations(rollout.context.host, slot) for worker in one.living]
