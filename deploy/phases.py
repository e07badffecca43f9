"""The phases of a rollout. Each is journalled before it acts, and says what it does while it takes long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from deploy import hooks
from deploy.accounts import Generation, born_since, current, generations
from deploy.asking import Door, PublicSocket, data_url
from deploy.canary import Share
from deploy.errors import DrainCut, GlmError, NotReady
from deploy.host import Host
from deploy.plan import Rollout, Tools
from deploy.preflight import preflight as preflight  # a phase too
from deploy.slots import release_target

_LOOK = 0.05  # seconds between two looks at the state files
_LOOK_AT_UNIT = 0.5  # seconds between two questions to systemd, which cost a process each
_ASK_AGAIN = 0.002  # seconds between two probes of the public socket
_SWITCH = 10.0  # seconds within which the gate of the slot that `live` names must be open


class Worse(Exception):
    """The candidate is live and should not be so any more, or is so no more."""

    def __init__(self, reason: str, *, by_operator: bool = False) -> None:
        super().__init__(reason)
        self.by_operator = by_operator


def prepare(rollout: Rollout) -> None:
    """Let the idle slot lead to the release, with nobody serving from it but that release itself."""
    tools, version = rollout.tools, rollout.plan.version
    rollout.enter("prepare", f"{rollout.candidate} -> {version}")
    if tools.systemd.state("glm.socket").active != "active":
        tools.systemd.start("glm.socket")
    if is_warm(tools, rollout.candidate, version):
        return
    tools.systemd.stop(rollout.unit)
    tools.slots.point(rollout.candidate, release_target(version))


def start(rollout: Rollout) -> None:
    """Start the candidate's unit; it returns from that when every worker is ready."""
    tools = rollout.tools
    rollout.enter("start", f"{rollout.unit} loads {rollout.plan.version}")
    if is_warm(tools, rollout.candidate, rollout.plan.version):
        tools.display.progress("it is still warm")
        return
    known = {one.generation for one in generations(tools.host, rollout.candidate)}
    with closing(tools.systemd.starting(rollout.unit)) as job:
        while not job.done:
            born = born_since(tools.host, rollout.candidate, known)
            tools.display.progress(born[-1].load if born else "starting")
            time.sleep(_LOOK)
    if not job.succeeded:
        born = born_since(tools.host, rollout.candidate, known)
        raise NotReady(
            f"{rollout.plan.version} did not become ready: {_why(rollout, born)}",
            hint=f"its log: journalctl {'--user ' if tools.host.user else ''}-u {rollout.unit}",
        )


def verify(rollout: Rollout) -> None:
    """Ask the release's checks once more, from outside, through the candidate's own door."""
    version = rollout.plan.version
    release = rollout.tools.releases.get(version)
    checks = release.manifest.checks or ({"question": "Are you there?", "max_tokens": 1},)
    rollout.enter("verify", f"{len(checks)} check{'s' if len(checks) > 1 else ''} through {rollout.candidate}'s door")
    door = Door(rollout.tools.host, rollout.candidate)
    if (answers := door.version()) != version:
        raise NotReady(f"{rollout.candidate} serves {answers} instead of {version}")
    for number, check in enumerate(checks, start=1):
        rollout.tools.display.progress(f"check {number} of {len(checks)}")
        image = check.get("image")
        if image and not image.startswith("data:"):
            image = data_url(release.path / image)
        reply = door.answer(check["question"], image, check.get("max_tokens", 32))
        expected = check.get("answer")
        if expected is not None and expected.lower() not in reply.lower():
            name = check.get("name") or check["question"]
            raise NotReady(f"check {name!r} failed: expected {expected!r} in the answer, got {reply!r}")


def canary(rollout: Rollout) -> None:
    """Let the candidate answer a growing share of the requests; raises Worse when it should answer no more."""
    tools, plan = rollout.tools, rollout.plan
    share = Share(tools.host)
    for number, weight in enumerate(plan.canary if rollout.old else (), start=1):
        rollout.enter("canary", f"{weight:g} % of the requests to {rollout.candidate}")
        share.give(rollout.candidate, weight, number, plan.sticky)
        deadline = None if plan.step is None else time.monotonic() + plan.step
        while not share.promoted and (deadline is None or time.monotonic() < deadline):
            if share.weight is None:
                raise Worse("the operator aborted it", by_operator=True)
            _require_healthy(rollout)
            left = "`glmctl promote` or `abort`" if deadline is None else f"{deadline - time.monotonic():.0f} s left"
            one = current(tools.host, rollout.candidate)
            tools.display.progress(f"{left}, {one.in_flight if one else 0} in flight there")
            time.sleep(_LOOK_AT_UNIT)


def cutover(rollout: Rollout) -> None:
    """One rename. Every worker follows by itself, and so do the connections."""
    tools = rollout.tools
    rollout.enter("cutover", f"live -> {rollout.candidate}")
    hooks.run(rollout, "pre_cutover")
    switch(rollout, rollout.candidate)
    Share(tools.host).end()
    if not _wait_for(lambda: _gate_follows(tools.host, rollout.candidate), _SWITCH):
        if rollout.old:
            tools.slots.go_live(rollout.old)
        raise NotReady(f"{rollout.candidate} did not open its gate within {_SWITCH:.0f} s")
    hooks.run(rollout, "post_cutover")


def bake(rollout: Rollout) -> None:
    """Keep the old slot warm and watch the new one; raises Worse when the new one should not be live any more."""
    tools = rollout.tools
    if rollout.old is None:
        return
    rollout.enter("bake", f"{rollout.old} stays warm for {rollout.plan.bake:g} s")
    deadline = time.monotonic() + rollout.plan.bake
    look_at_unit = time.monotonic()
    while True:
        with _entrusted(rollout):
            now = time.monotonic()
            if now >= look_at_unit:
                look_at_unit = now + _LOOK_AT_UNIT
                _require_healthy(rollout)
            if now >= deadline:
                rollout.enter("retire", f"{rollout.old} finishes what it began")
                return
        one = current(tools.host, rollout.candidate)
        tools.display.progress(f"{deadline - now:.0f} s left, {one.in_flight if one else 0} in flight")
        time.sleep(min(_LOOK, max(0.0, deadline - now)))


@contextmanager
def _entrusted(rollout: Rollout) -> Iterator[None]:
    """A moment in which nobody else may rename `live`; raises Worse if somebody did before."""
    with rollout.entry.journal.switching():
        if rollout.tools.slots.live != rollout.candidate:
            raise Worse("the operator rolled it back", by_operator=True)
        yield


def retire(rollout: Rollout) -> None:
    """See the old slot off: it finishes what it began, then its unit is stopped. Raises DrainCut."""
    if rollout.old is None:
        return
    try:
        drain(rollout, rollout.old)
    finally:
        rollout.tools.systemd.stop(rollout.tools.host.unit(rollout.old))


def drain(rollout: Rollout, slot: str) -> None:
    """Wait until `slot` holds no connection and no request; at the deadline cut what is left and raise DrainCut."""
    tools = rollout.tools
    deadline = time.monotonic() + rollout.plan.drain
    while holding := _holding(tools.host, slot):
        in_flight = sum(one.in_flight for one in holding)
        if time.monotonic() >= deadline:
            tools.systemd.kill_main(tools.host.unit(slot), "QUIT")
            _wait_for(lambda: not _holding(tools.host, slot), _SWITCH)
            raise DrainCut(
                f"the drain deadline of {rollout.plan.drain:g} s cut {in_flight} request(s) of {slot}",
                hint="--drain gives long answers more time",
            )
        tools.display.progress(f"{in_flight} in flight, {sum(one.connections for one in holding)} connections")
        time.sleep(_LOOK)


def undo(rollout: Rollout) -> None:
    """Before cutover is done: stop the candidate and leave the host as it was."""
    tools = rollout.tools
    Share(tools.host).end()
    if rollout.old and tools.slots.live == rollout.candidate:
        tools.slots.go_live(rollout.old)
    if rollout.entry.record.phase == "preflight":
        return
    tools.systemd.stop(rollout.unit)
    tools.slots.point(rollout.candidate, rollout.entry.record.slot_held)


def rollback(rollout: Rollout) -> None:
    """The cutover backwards, in a rollout of ours."""
    if rollout.old is None:
        raise GlmError("there is no slot to go back to")
    with rollout.entry.journal.switching():
        rollout.enter("rollback", f"live -> {rollout.old}")
        switch(rollout, rollout.old)


def switch_back(rollout: Rollout) -> None:
    """A rollback to a warm slot: the rename and nothing else. Both slots stay warm, so that it can be taken back."""
    rollout.enter("rollback", f"live -> {rollout.candidate}, which is still warm")
    switch(rollout, rollout.candidate)
    if not _wait_for(lambda: _gate_follows(rollout.tools.host, rollout.candidate), _SWITCH):
        if rollout.old:
            rollout.tools.slots.go_live(rollout.old)
        raise NotReady(f"{rollout.candidate} did not open its gate within {_SWITCH:.0f} s")


def switch(rollout: Rollout, slot: str) -> None:
    """Rename `live`, then ask the public socket until the slot it names has answered."""
    listen = rollout.tools.systemd.listen()
    public = PublicSocket(listen) if listen else None
    began = time.monotonic()
    rollout.tools.slots.go_live(slot)
    while public and time.monotonic() - began < _SWITCH:
        rollout.probes += 1
        if public.slot() == slot:
            rollout.entry.record.switch_ms = round((time.monotonic() - began) * 1000, 1)
            return
        time.sleep(_ASK_AGAIN)


def is_warm(tools: Tools, slot: str, version: str) -> bool:
    """Whether `slot` could serve `version` at once."""
    one = current(tools.host, slot)
    return (
        one is not None
        and one.serves
        and one.version == version == tools.slots.version(slot)
        and tools.systemd.state(tools.host.unit(slot)).active == "active"
    )


def _require_healthy(rollout: Rollout) -> None:
    unit = rollout.tools.systemd.state(rollout.unit)
    one = current(rollout.tools.host, rollout.candidate)
    if unit.active not in {"active", "reloading"}:
        raise Worse(f"{rollout.unit} is {unit.active} ({unit.result})")
    if one is None or not one.serves:
        raise Worse(f"{rollout.candidate} has no worker that serves")


def _gate_follows(host: Host, slot: str) -> bool:
    one = current(host, slot)
    return one is not None and one.gate == "open"


def _holding(host: Host, slot: str) -> list[Generation]:
    return [one for one in generations(host, slot) if one.connections or one.in_flight]


def _why(rollout: Rollout, born: list[Generation]) -> str:
    if born and born[-1].error:
        return born[-1].error
    unit = rollout.tools.systemd.state(rollout.unit)
    if unit.status.startswith("failed: "):
        return unit.status.removeprefix("failed: ")
    last = f" (it was at: {unit.status})" if unit.status else ""
    return {
        "timeout": f"it made no progress until systemd's start time-out{last}",
        "watchdog": f"its watchdog expired{last}",
        "signal": f"it was killed{last}",
        "core-dump": f"it crashed{last}",
    }.get(unit.result, f"it ended ({unit.result}){last}")


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK)
    return True
