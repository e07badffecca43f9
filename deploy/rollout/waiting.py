"""The state of slots as several phases read it, and waiting for it to change."""

from __future__ import annotations

import time
from collections.abc import Callable

from deploy.errors import Degraded
from deploy.host import Host
from deploy.rollout.liveness import Frozen
from deploy.rollout.plan import Context, Rollout
from service.contract.generations import Generation, current, generations

__all__ = [
    "POLL",
    "UNIT_POLL",
    "in_flight",
    "is_open",
    "is_warm",
    "require_alive",
    "require_healthy",
    "undrained",
    "wait_for",
]

POLL = 0.05  # seconds between two reads of the state files
UNIT_POLL = 0.5  # seconds between two calls of systemctl, each of which is a process


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until `condition` holds; returns False if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL)
    return True


def is_warm(context: Context, slot: str, version: str) -> bool:
    """Return whether `slot` has `version` loaded and ready, so that it can become live at once."""
    found = current(context.host.runtime, slot)
    return (
        found is not None
        and found.is_serving
        and found.version == version == context.slots.version(slot)
        and context.systemd.state(context.host.unit(slot)).active == "active"
    )


def is_open(host: Host, slot: str) -> bool:
    """Return whether a worker of the slot's current generation takes connections."""
    found = current(host.runtime, slot)
    return found is not None and found.gate == "open"


def in_flight(rollout: Rollout) -> int:
    """Return the number of requests in flight in the candidate."""
    found = current(rollout.context.host.runtime, rollout.candidate)
    return found.in_flight if found else 0


def undrained(host: Host, slot: str) -> list[Generation]:
    """Return the generations of `slot` that have a connection or a request."""
    return [one for one in generations(host.runtime, slot) if one.connections or one.in_flight]


def require_alive(rollout: Rollout) -> None:
    """Raise Degraded if the candidate is frozen. Is to be called several times a second."""
    try:
        rollout.liveness.require()
    except Frozen as frozen:
        raise Degraded(str(frozen)) from frozen


def require_healthy(rollout: Rollout) -> None:
    """Raise Degraded if the candidate's unit is down or none of its workers is ready."""
    unit = rollout.context.systemd.state(rollout.unit)
    found = current(rollout.context.host.runtime, rollout.candidate)
    if unit.active not in {"active", "reloading"}:
        raise Degraded(f"{rollout.unit} is {unit.active} ({unit.result})")
    if found is None or not found.is_serving:
        raise Degraded(f"{rollout.candidate} has no ready worker")
