"""The swap strategy, for a device with memory for one copy: a slot's workers end while its master stays, and return.

The master holds the slot's handoff.sock meanwhile, in whose backlog idle connections wait. New ones wait in the backlog
of the public socket.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from deploy.errors import DrainCut, GlmError
from deploy.rollout.plan import Rollout
from deploy.rollout.waiting import POLL, wait_for
from service.contract.generations import current, generations
from service.contract.worker_state import WorkerState

__all__ = ["restart_workers", "stop_workers", "vacate"]

_QUIT = 10.0  # seconds for workers that were sent SIGQUIT to end
_LOAD = 1800.0  # seconds for a version that has served before to serve again
_RETRY = 2.0  # seconds between two attempts to start the workers


def vacate(rollout: Rollout) -> None:
    """Stop the live slot's workers after their requests, so that their memory is free. Clients wait from then on."""
    if not rollout.is_swap or rollout.old is None:
        return
    rollout.enter("vacate", f"{rollout.old} finishes its requests and frees its memory; clients wait from now on")
    rollout.context.timers.start_guard()
    rollout.probe.begin()
    stop_workers(rollout, rollout.old)


def stop_workers(rollout: Rollout, slot: str) -> None:
    """Stop the workers of `slot` (SIGWINCH) and wait until they have ended; the drain deadline cuts their requests."""
    context = rollout.context
    context.systemd.kill_main(context.host.unit(slot), "WINCH")
    deadline = time.monotonic() + rollout.plan.drain
    while workers := _workers(rollout, slot):
        in_flight = sum(worker.in_flight for worker in workers)
        if time.monotonic() >= deadline:
            for worker in workers:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGQUIT)
            wait_for(lambda: not _workers(rollout, slot), _QUIT)
            rollout.drain_cut = DrainCut.of(in_flight, slot, rollout.plan.drain)
            return
        context.display.progress(f"{in_flight} in flight, {sum(worker.connections for worker in workers)} connections")
        time.sleep(POLL)


def restart_workers(rollout: Rollout, slot: str) -> None:
    """Start the workers of a vacated slot (SIGHUP), or its unit if that has ended, and wait until it serves.

    Raises GlmError if it does not.
    """
    context = rollout.context
    unit = context.host.unit(slot)
    found = current(context.host.runtime, slot)
    if found is not None and found.is_serving and all(worker.phase != "leaving" for worker in found.alive_workers):
        return
    stop_workers(rollout, slot)  # those that are leaving still hold the memory
    context.display.line(f"{'':10}{unit} loads {context.slots.version(slot)} again")
    deadline, next_attempt = time.monotonic() + _LOAD, 0.0
    while (found := current(context.host.runtime, slot)) is None or not found.is_serving:
        if time.monotonic() >= deadline:
            raise GlmError(f"{unit} does not serve again", hint=context.log_hint(unit))
        if time.monotonic() >= next_attempt and not (found and found.alive_workers):
            next_attempt = time.monotonic() + _RETRY
            if context.systemd.state(unit).active == "active":
                context.systemd.kill_main(unit, "HUP")
            else:
                context.systemd.start_later(unit)
        context.display.progress(f"{found.load_progress if found else 'starting'}, clients wait")
        time.sleep(POLL)


def _workers(rollout: Rollout, slot: str) -> list[WorkerState]:
    return [worker for one in generations(rollout.context.host.runtime, slot) for worker in one.alive_workers]
