"""The candidate before it has any request: prepared, started, verified, or undone."""

from __future__ import annotations

import time
from contextlib import closing

from deploy.errors import NotReady
from deploy.journal.accounts import Generation, born_since, generations
from deploy.rollout.canary_file import Share
from deploy.rollout.checks import ask_checks
from deploy.rollout.plan import Rollout
from deploy.rollout.slot_client import Door
from deploy.rollout.slots import release_target
from deploy.rollout.swap import revive
from deploy.rollout.waiting import LOOK
from deploy.rollout.warmth import is_warm


def prepare(rollout: Rollout) -> None:
    """Let the idle slot lead to the release, with nobody serving from it but that release itself."""
    context, version = rollout.context, rollout.plan.version
    rollout.enter("prepare", f"{rollout.candidate} -> {version}")
    context.timers.cancel_retirements()
    if context.systemd.state("glm.socket").active != "active":
        context.systemd.start("glm.socket")
    if is_warm(context, rollout.candidate, version):
        return
    context.systemd.stop(rollout.unit)
    context.slots.point(rollout.candidate, release_target(version))


def start(rollout: Rollout) -> None:
    """Start the candidate's unit; it returns from that when every worker is ready."""
    context, plan = rollout.context, rollout.plan
    rollout.enter("start", f"{rollout.unit} loads {plan.version}")
    if is_warm(context, rollout.candidate, plan.version):
        context.display.progress("it is still warm")
        return
    known = {one.generation for one in generations(context.host, rollout.candidate)}
    deadline = time.monotonic() + plan.deadline if rollout.swaps else None
    with closing(context.systemd.starting(rollout.unit)) as job:
        while not job.done:
            born = born_since(context.host, rollout.candidate, known)
            load = born[-1].load if born else "starting"
            if deadline is not None and time.monotonic() >= deadline:
                raise NotReady(f"{plan.version} was not ready after {plan.deadline:g} s (it was at: {load})")
            context.display.progress(load + (", clients wait" if rollout.swaps else ""))
            time.sleep(LOOK)
    if not job.succeeded:
        born = born_since(context.host, rollout.candidate, known)
        raise NotReady(
            f"{plan.version} did not become ready: {_why(rollout, born)}",
            hint=f"its log: journalctl {'--user ' if context.host.user else ''}-u {rollout.unit}",
        )


def verify(rollout: Rollout) -> None:
    """Ask the release's checks once more, from outside, through the candidate's own door."""
    version = rollout.plan.version
    release = rollout.context.releases.get(version)
    count = len(release.manifest.checks) or 1
    rollout.enter("verify", f"{count} check{'s' if count > 1 else ''} through {rollout.candidate}'s door")
    if (answers := Door(rollout.context.host, rollout.candidate).version()) != version:
        raise NotReady(f"{rollout.candidate} serves {answers} instead of {version}")
    ask_checks(rollout.context, release, rollout.candidate)


def undo(rollout: Rollout) -> None:
    """Before cutover is done: stop the candidate and leave the host as it was."""
    context = rollout.context
    Share(context.host).end()
    if rollout.old and context.slots.live == rollout.candidate:
        context.slots.go_live(rollout.old)
    if rollout.entry.record.phase == "preflight":
        return
    context.systemd.stop(rollout.unit)
    context.slots.point(rollout.candidate, rollout.entry.record.slot_held)
    if rollout.swaps and rollout.old:
        revive(rollout, rollout.old)


def _why(rollout: Rollout, born: list[Generation]) -> str:
    if born and born[-1].error:
        return born[-1].error
    unit = rollout.context.systemd.state(rollout.unit)
    if unit.status.startswith("failed: "):
        return unit.status.removeprefix("failed: ")
    last = f" (it was at: {unit.status})" if unit.status else ""
    return {
        "timeout": f"it made no progress until systemd's start time-out{last}",
        "watchdog": f"its watchdog expired{last}",
        "signal": f"it was killed{last}",
        "core-dump": f"it crashed{last}",
    }.get(unit.result, f"it ended ({unit.result}){last}")
