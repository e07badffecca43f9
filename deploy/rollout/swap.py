"""The swap strategy, for a device with memory for one copy: a slot's workers end while its master stays, and return.

Workers whose engine can sleep do that instead (`sleep.py`). The master, or the worker that sleeps, holds the slot's
handoff.sock meanwhile, in whose backlog idle connections wait. New ones wait in the backlog of the public socket.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack

from deploy.display import count
from deploy.errors import DrainCut, GlmError
from deploy.rollout.new_generation import NewGeneration
from deploy.rollout.plan import Rollout
from deploy.rollout.sleep import fall_asleep, wake_up
from deploy.rollout.waiting import POLL, wait_for
from service.contract.generations import current, generations
from service.contract.worker_state import WorkerState

__all__ = ["revive", "stop_workers", "vacate"]

_QUIT = 10.0  # seconds for workers that were sent SIGQUIT to end
_LOAD = 1800.0  # seconds for a version that has served before to serve again
_RETRY = 2.0  # seconds between two attempts to start the workers; a master replaces a worker that died within one
_ATTEMPTS = 3  # failed starts of the unit


def vacate(rollout: Rollout) -> None:
    """Stop the live slot's workers after their requests, so that their memory is free. Clients wait from then on."""
    if not rollout.is_swap or rollout.old is None:
        return
    rollout.enter("vacate", f"{rollout.old} finishes its requests and frees its memory; clients wait from now on")
    rollout.probe.begin()
    deadline = time.monotonic() + rollout.plan.drain
    if not fall_asleep(rollout, rollout.old, deadline):
        stop_workers(rollout, rollout.old, deadline)


def stop_workers(rollout: Rollout, slot: str, deadline: float | None = None) -> None:
    """Stop the workers of `slot` (SIGWINCH) and wait until they have ended; the drain deadline cuts their requests.

    `deadline`: by time.monotonic, if their time to drain has begun before.
    """
    context = rollout.context
    context.systemd.kill_main(context.host.unit(slot), "WINCH")
    frozen = rollout.frozen_in(slot)
    deadline = time.monotonic() + rollout.plan.drain if deadline is None else deadline
    while workers := _workers(rollout, slot):
        frozen.look()
        in_flight = sum(worker.in_flight for worker in workers)
        if time.monotonic() >= deadline:
            for worker in workers:
                context.systemd.kill_process(context.host.unit(slot), worker.pid, signal.SIGQUIT)
            wait_for(lambda: not frozen.look() and not _workers(rollout, slot), _QUIT)
            rollout.drain_cut = DrainCut.of(in_flight, slot, rollout.plan.drain)
            return
        connections = sum(worker.connections for worker in workers)
        context.display.progress(f"{in_flight} in flight, {count(connections, 'connection')}")
        time.sleep(POLL)


def revive(rollout: Rollout, slot: str) -> None:
    """Wait until `slot` serves; wake its workers, start them (SIGHUP) if its master has none, or the unit if it ended.

    Raises GlmError if the unit fails to start three times, or does not serve after 30 minutes.
    """
    context = rollout.context
    unit = context.host.unit(slot)
    sleeps = wake_up(context, slot)
    found = current(context.host.runtime, slot)
    if found is not None and any(worker.phase == "leaving" for worker in found.alive_workers):
        stop_workers(rollout, slot)  # those that are leaving still hold the memory
    elif found is not None and found.is_serving:
        return
    version = context.slots.version(slot)
    context.display.line(f"{'':10}{unit} wakes {version} up" if sleeps else f"{'':10}{unit} loads {version} again")
    new = NewGeneration(context, slot, version or "")
    job, failures, looks, next_look = None, 0, 0, 0.0
    deadline = time.monotonic() + _LOAD
    with ExitStack() as jobs:
        while (found := current(context.host.runtime, slot)) is None or not found.is_serving:
            if job is not None and job.done:
                failures += not job.succeeded
                job = None
            if failures >= _ATTEMPTS or time.monotonic() >= deadline:
                raise GlmError(f"{unit} does not serve again: {new.failure}", hint=context.log_hint(unit))
            if job is None and not (found and found.alive_workers) and time.monotonic() >= next_look:
                next_look = time.monotonic() + _RETRY
                if context.systemd.state(unit).active != "active":
                    job = jobs.enter_context(context.systemd.starting(unit))
                elif rollout.is_swap or looks:  # else the master is about to replace a worker that died
                    context.systemd.kill_main(unit, "HUP")
                looks += 1
            context.display.progress(found.load_progress if found else "starting")
            time.sleep(POLL)


def _workers(rollout: Rollout, slot: str) -> list[WorkerState]:
    return [worker for one in generations(rollout.context.host.runtime, slot) for worker in one.alive_workers]
