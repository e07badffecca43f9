"""What several phases look at while they wait."""

from __future__ import annotations

import time
from collections.abc import Callable

from deploy.errors import Degraded
from deploy.host import Host
from deploy.journal.accounts import Generation, current, generations
from deploy.rollout.plan import Rollout

LOOK = 0.05  # seconds between two looks at the state files
LOOK_AT_UNIT = 0.5  # seconds between two questions to systemd, which cost a process each


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until `condition` holds; False when it did not in so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK)
    return True


def require_healthy(rollout: Rollout) -> None:
    """Raise Degraded when the candidate, which has requests, cannot answer them any more."""
    unit = rollout.context.systemd.state(rollout.unit)
    one = current(rollout.context.host, rollout.candidate)
    if unit.active not in {"active", "reloading"}:
        raise Degraded(f"{rollout.unit} is {unit.active} ({unit.result})")
    if one is None or not one.serves:
        raise Degraded(f"{rollout.candidate} has no worker that serves")


def in_flight(rollout: Rollout) -> int:
    """Requests that the candidate answers now."""
    one = current(rollout.context.host, rollout.candidate)
    return one.in_flight if one else 0


def gate_follows(host: Host, slot: str) -> bool:
    """Whether the slot that `live` names takes connections."""
    one = current(host, slot)
    return one is not None and one.gate == "open"


def holding(host: Host, slot: str) -> list[Generation]:
    """The generations of `slot` that hold a connection or a request."""
    return [one for one in generations(host, slot) if one.connections or one.in_flight]
