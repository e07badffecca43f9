"""The candidate before it serves clients: prepare, start, verify; and its removal."""

from __future__ import annotations

from contextlib import suppress

from deploy.display import count
from deploy.errors import DrainCut, NotReady
from deploy.rollout.checks import checks_of, run_checks
from deploy.rollout.liveness import answer_of
from deploy.rollout.new_generation import NewGeneration
from deploy.rollout.plan import Rollout
from deploy.rollout.retire import retire_slot, stop_idle
from deploy.rollout.slot_client import SlotClient
from deploy.rollout.swap import revive
from deploy.rollout.waiting import is_warm
from service.contract.canary_file import CanaryFile
from service.contract.slots import release_target

__all__ = ["prepare", "remove", "start", "verify"]


def prepare(rollout: Rollout) -> None:
    """Stop the idle slot's unit, unless it has the version loaded, and point the slot's symlink to the release.

    Raises SlotIsLive if it has become live.
    """
    context, version = rollout.context, rollout.plan.version
    rollout.enter("prepare", f"{rollout.candidate} -> {version}")
    context.timers.cancel_retirements()
    if context.systemd.state("glm.socket").active != "active":
        context.systemd.start("glm.socket")
    if is_warm(context, rollout.candidate, version):
        return
    stop_idle(context, rollout.candidate)
    context.slots.point(rollout.candidate, release_target(version))


def start(rollout: Rollout) -> None:
    """Start the candidate's unit and wait until all its workers are ready; raises NotReady."""
    context, plan = rollout.context, rollout.plan
    rollout.enter("start", f"{rollout.unit} loads {plan.version}")
    if is_warm(context, rollout.candidate, plan.version):
        context.display.progress("it is still warm")
        return
    new = NewGeneration(context, rollout.candidate, plan.version)
    try:
        new.wait(
            context.systemd.starting(rollout.unit),
            lambda: new.load + (", clients wait" if rollout.is_swap else ""),
            deadline=plan.deadline if rollout.is_swap else None,
        )
    finally:
        rollout.record.load = new.found.load if new.found else {}


def verify(rollout: Rollout) -> None:
    """Run the release's checks through the candidate's internal socket, and wait for its digests; raises NotReady."""
    version = rollout.plan.version
    release = rollout.context.releases.get(version)
    rollout.enter("verify", f"{count(len(checks_of(release)), 'check')} on {rollout.candidate}")
    host, slot, watch = rollout.context.host, rollout.candidate, rollout.liveness.require
    if (served := answer_of(SlotClient(host, slot).version, watch)) != version:
        raise NotReady(f"{slot} serves {served} instead of {version}")
    answer_of(lambda: run_checks(host, release, slot), watch)
    rollout.require_digests(watch)


def remove(rollout: Rollout) -> None:
    """Stop the candidate and restore the symlinks; after a swap's vacate, load the old version again."""
    context = rollout.context
    CanaryFile(context.host.runtime).remove()
    if rollout.record.phase == "preflight":
        return
    if rollout.old is None:  # the first version of the host may be live, and there is no other one
        if context.slots.live == rollout.candidate:
            context.slots.go_live(None)
        context.systemd.stop(rollout.unit, rollout.frozen_in(rollout.candidate).look)
    else:
        _stop(rollout)
    context.slots.point(rollout.candidate, rollout.record.slot_held)
    if rollout.is_swap and rollout.old:
        revive(rollout, rollout.old)


def _stop(rollout: Rollout) -> None:
    """Stop the candidate. Its workers finish the requests of a canary; not if they answer nothing."""
    frozen = rollout.frozen_in(rollout.candidate)
    if rollout.liveness.is_frozen:
        with suppress(DrainCut):
            retire_slot(rollout.context, rollout.candidate, rollout.drain, frozen)
    else:
        stop_idle(rollout.context, rollout.candidate, frozen)
