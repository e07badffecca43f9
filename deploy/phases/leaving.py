"""The end of a slot: it finishes what it began, and its unit is stopped."""

from __future__ import annotations

import time

from deploy.errors import DrainCut
from deploy.phases.looking import LOOK, holding, wait_for
from deploy.plan import Rollout

_CUT = 10.0  # seconds for a slot that was told to leave now


def retire(rollout: Rollout) -> None:
    """See the old slot off: it finishes what it began, then its unit is stopped. Raises DrainCut."""
    if rollout.old is None:
        return
    try:
        drain(rollout, rollout.old)
    finally:
        rollout.tools.systemd.stop(rollout.tools.host.unit(rollout.old))
    if rollout.was_cut:
        raise rollout.was_cut


def drain(rollout: Rollout, slot: str) -> None:
    """Wait until `slot` holds no connection and no request; at the deadline cut what is left and raise DrainCut."""
    tools = rollout.tools
    deadline = time.monotonic() + rollout.plan.drain
    while held := holding(tools.host, slot):
        in_flight = sum(one.in_flight for one in held)
        if time.monotonic() >= deadline:
            tools.systemd.kill_main(tools.host.unit(slot), "QUIT")
            wait_for(lambda: not holding(tools.host, slot), _CUT)
            raise DrainCut.of(in_flight, slot, rollout.plan.drain)
        tools.display.progress(f"{in_flight} in flight, {sum(one.connections for one in held)} connections")
        time.sleep(LOOK)
