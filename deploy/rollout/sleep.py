"""The old version of a swap sleeps, where its engine can: its weights rest in the host's memory until the swap is over.

To go back takes about a second then, instead of a load.
"""

from __future__ import annotations

import time
from contextlib import suppress

from deploy.errors import Refused
from deploy.rollout import memory
from deploy.rollout.plan import Context, Rollout
from deploy.rollout.waiting import POLL
from service.contract.generations import Generation, current, generations
from service.contract.sleep_order import SleepOrder
from service.contract.slots import generation_directory

__all__ = ["fall_asleep", "wake_up"]


def fall_asleep(rollout: Rollout, slot: str, deadline: float) -> bool:
    """Have the workers of `slot` sleep once their requests have ended; `deadline`: by time.monotonic.

    Returns False, and the workers have to be stopped instead, if they cannot sleep, do not by then, or if what they
    keep of the device leaves no room for the candidate.
    """
    context, frozen = rollout.context, rollout.frozen_in(slot)
    found = _only_generation(context, slot)
    if found is None or not found.alive_workers or not all(worker.can_sleep for worker in found.alive_workers):
        return False
    try:
        memory.require_asleep(context, slot, len(found.alive_workers))
        _order(context, found).give()
        while not _is_asleep(context, found):
            frozen.look()
            if time.monotonic() >= deadline or frozen.has_killed:
                return False
            context.display.progress("its workers fall asleep")
            time.sleep(POLL)
        memory.require(context, rollout.plan.version, "swap")
    except (Refused, OSError) as error:
        context.display.line(f"{'':10}{slot} cannot sleep, and is unloaded: {error}")
        return False
    context.display.line(f"{'':10}{slot} sleeps: its weights stay in the host's memory")
    return True


def wake_up(context: Context, slot: str) -> bool:
    """Have the workers of `slot` wake up, if they were ordered to sleep; returns whether they sleep."""
    found = current(context.host.runtime, slot)
    if found is None:
        return False
    with suppress(OSError):  # of a file system that cannot be written: the caller says that the slot does not serve
        _order(context, found).withdraw()
    return any(worker.phase == "asleep" for worker in found.alive_workers)


def _is_asleep(context: Context, before: Generation) -> bool:
    """Return whether all workers sleep; one that has died has a successor, which waits to load."""
    found = _only_generation(context, before.slot)
    workers = found.alive_workers if found and found.generation == before.generation else []
    return len(workers) >= before.workers_wanted and all(worker.phase == "asleep" for worker in workers)


def _only_generation(context: Context, slot: str) -> Generation | None:
    """Return the generation of a slot; None if there are several, of which one leaves, and holds memory."""
    alive = [one for one in generations(context.host.runtime, slot) if one.alive_workers]
    return alive[0] if len(alive) == 1 else None


def _order(context: Context, found: Generation) -> SleepOrder:
    return SleepOrder(generation_directory(context.host.runtime, found.slot, found.generation))
