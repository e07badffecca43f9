"""A slot that is live is never stopped, whatever makes it live, and at whatever moment."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import Degraded, DrainCut, GlmError
from deploy.journal.journal import Journal
from deploy.rollout import retire as retiring
from deploy.rollout import undo as undoing
from deploy.rollout.candidate import prepare, remove
from deploy.rollout.plan import Plan, Rollout
from deploy.rollout.recovery import resume
from deploy.rollout.undo import undo
from tests.rollout_fixtures import Moments, ScriptedContext, directories

PLAN = Plan("1.1.0", drain=0.0)


def resume_from(phase: str) -> Callable[[Rollout], object]:
    """A rollout whose controller died in `phase` is resumed, or ended by the next command."""

    def act(rollout: Rollout) -> None:
        rollout.enter(phase, "")  # type: ignore[arg-type]
        resume(rollout.context, at_once=True)

    return act


def undo_from(phase: str) -> Callable[[Rollout], object]:
    def act(rollout: Rollout) -> None:
        rollout.enter(phase, "")  # type: ignore[arg-type]
        undo(rollout)

    return act


def remove_in_start(rollout: Rollout) -> None:
    rollout.enter("start", "")
    remove(rollout)


AFTER_CUTOVER: dict[str, Callable[[Rollout], object]] = {
    "retire": retiring.retire,
    "complete": retiring.complete,
    "glmctl retire": lambda rollout: retiring.retire_idle_slot(rollout.context, "blue", None, 0.0),
    "undo in retire": undo_from("retire"),
    "undo in bake": undo_from("bake"),
    "undo in rollback": undo_from("rollback"),
    "resumed in bake": resume_from("bake"),
    "resumed in retire": resume_from("retire"),
    "resumed in rollback": resume_from("rollback"),
}
GOING_BACK = {"undo in bake", "undo in rollback", "resumed in rollback"}  # they stop the candidate
BEFORE_CUTOVER: dict[str, Callable[[Rollout], object]] = {
    "prepare": prepare,
    "remove": remove_in_start,
    "undo in canary": undo_from("canary"),
    "resumed in start": resume_from("start"),
    "resumed in cutover": resume_from("cutover"),
}


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[Moments]:
    """Both slots have a request in flight, until its drain deadline; every look at it is a moment."""
    moments: list[Moments] = []

    class Busy:
        in_flight = connections = 1

    def undrained(*_: Any) -> list[Busy]:
        moments[-1].tick()
        return [Busy()]

    monkeypatch.setattr(retiring, "undrained", undrained)
    monkeypatch.setattr(retiring, "_QUIT", 0.0)
    monkeypatch.setattr(retiring, "current", lambda *_: type("Generation", (), {"version": "1.0.0"}))
    monkeypatch.setattr(undoing, "revive", lambda *_: moments[-1].tick())
    monkeypatch.setattr(undoing, "require_answer", lambda *_: None)
    monkeypatch.setattr(undoing, "rename", lambda rollout, slot, _: rollout.context.slots.go_live(slot))
    monkeypatch.setattr("deploy.rollout.bake.require_alive", lambda _: None)
    monkeypatch.setattr("deploy.rollout.bake.require_healthy", lambda _: moments[-1].tick())
    monkeypatch.setattr("deploy.rollout.plan._WORKER_PUBLISH", 0.0)
    return moments


@pytest.mark.parametrize("name", [*AFTER_CUTOVER, *BEFORE_CUTOVER])
def test_a_live_slot_is_never_stopped(busy: list[Moments], name: str) -> None:
    """Another process renames `live`, under its lock, at any moment of what stops a slot: that slot is left alone."""
    act = {**AFTER_CUTOVER, **BEFORE_CUTOVER}[name]
    live = "green" if name in AFTER_CUTOVER else "blue"
    victim = "green" if name in BEFORE_CUTOVER or name in GOING_BACK else "blue"

    @settings(max_examples=12, deadline=None)
    @given(st.integers(0, 11))
    def check(chosen: int) -> None:
        with tempfile.TemporaryDirectory() as path, directories(Path(path)) as host:
            moments = Moments(chosen)
            busy.append(moments)
            context = ScriptedContext.of(host, moments)
            context.slots.go_live("blue")
            rollout = context.deploy(PLAN)
            context.slots.go_live(live)

            def rename() -> None:
                with Journal(host).switching():
                    context.slots.go_live(victim)

            moments.act = rename
            with suppress(GlmError, Degraded):
                act(rollout)
            moments.end()
            stopped = [(slot, live) for how, slot, live in context.calls if how in {"stop", "QUIT"}]
            assert all(slot != live for slot, live in stopped), (chosen, context.calls)

    check()


@pytest.mark.parametrize("name", ["retire", "resumed in retire"])
def test_an_idle_slot_is_stopped(busy: list[Moments], name: str, tmp_path: Path) -> None:
    """Without another process the slot's requests are cut at the deadline, and its unit is stopped."""
    with directories(tmp_path) as host:
        busy.append(Moments())
        context = ScriptedContext.of(host, busy[-1])
        rollout = context.deploy(PLAN)
        context.slots.go_live("green")
        with suppress(DrainCut):
            AFTER_CUTOVER[name](rollout)
        assert [call[:2] for call in context.calls][::2] == [("QUIT", "blue"), ("stop", "blue")]


def test_a_slot_that_becomes_live_ends_the_retirement(busy: list[Moments], tmp_path: Path) -> None:
    """The deploy is told that it was rolled back, and the slot is not touched."""
    with directories(tmp_path) as host:
        busy.append(Moments())
        context = ScriptedContext.of(host, busy[-1])
        rollout = context.deploy(Plan("1.1.0", drain=60.0))
        context.slots.go_live("green")
        busy[-1].chosen, busy[-1].act = 0, lambda: context.slots.go_live("blue")
        with pytest.raises(Degraded, match="blue is live"):
            retiring.retire(rollout)
        assert context.calls == []
