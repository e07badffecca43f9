"""`abort` holds at every moment of a canary: the candidate gets no request afterwards, or the abort is refused."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import Refused, RolledBack
from deploy.journal.journal import Entry
from deploy.rollout import canary as stepping
from deploy.rollout import cutover as cutting
from deploy.rollout import hooks
from deploy.rollout.canary import abort, canary
from deploy.rollout.cutover import cutover
from deploy.rollout.frame import recorded
from deploy.rollout.plan import Plan, Rollout
from service.contract.canary_file import Canary, CanaryFile
from tests.rollout_fixtures import Moments, ScriptedContext, directories


class Clock:
    """A scripted clock; every sleep is a moment."""

    def __init__(self, moments: Moments) -> None:
        self._now, self._moments = 0.0, moments

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
        self._moments.tick()


class Judge:
    """Finds nothing; its looks and its last checks are moments."""

    moments: Moments

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def update(self) -> None:
        self.moments.tick()

    def conclude(self) -> bool:
        self.moments.tick()
        self.moments.tick()
        return True


class Play:
    """One deploy with a canary, during which `abort` is called at a chosen moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, shares: tuple[float, ...], chosen: int) -> None:
        with directories(path) as host:
            moments = Moments(chosen)
            self.context = ScriptedContext.of(host, moments)
            self.written: list[str] = []
            """What the candidate was given: shares, and `live`; and `aborted`, once `abort` has returned."""
            self.refused: Refused | None = None
            self._script(monkeypatch, moments)
            rollout = self.context.deploy(Plan("1.1.0", canary=shares, step=1.0))
            moments.act = self._abort
            with suppress(RolledBack), recorded(rollout, lambda _: True):
                rollout.enter("verify", "")
                moments.tick()
                canary(rollout)
                cutover(rollout)
            moments.tick()
            moments.end()
            self.record, self.moments = rollout.record, moments.passed
            self.file = CanaryFile(host.runtime).read()

    def _abort(self) -> None:
        try:
            abort(self.context)
        except Refused as error:
            self.refused = error
        else:
            self.written.append("aborted")

    def _script(self, monkeypatch: pytest.MonkeyPatch, moments: Moments) -> None:
        write, remove, enter = CanaryFile.write, CanaryFile.remove, Entry.enter
        slots = self.context.slots

        def write_step(file: CanaryFile, step: Canary) -> None:
            moments.tick()
            write(file, step)
            self.written.append(f"{step.weight:g}")
            moments.tick()

        def enter_phase(entry: Entry, phase: str) -> None:
            moments.tick()
            enter(entry, phase)  # type: ignore[arg-type]
            moments.tick()

        def rename(_: Rollout, slot: str, __: object) -> None:
            moments.tick()
            slots.go_live(slot)
            self.written.append("live")
            moments.tick()

        Judge.moments = moments
        monkeypatch.setattr(stepping, "time", Clock(moments))
        monkeypatch.setattr(stepping, "Judge", Judge)
        monkeypatch.setattr(stepping, "require_healthy", moments.tick)
        monkeypatch.setattr(stepping, "require_alive", lambda _: None)
        monkeypatch.setattr(cutting, "require_alive", lambda _: None)
        monkeypatch.setattr(stepping, "in_flight", lambda _: 0)
        monkeypatch.setattr(cutting, "rename", rename)
        monkeypatch.setattr(hooks, "run", moments.tick)
        monkeypatch.setattr(hooks, "begin", moments.tick)
        monkeypatch.setattr(CanaryFile, "write", write_step)
        monkeypatch.setattr(CanaryFile, "remove", remove)
        monkeypatch.setattr(Entry, "enter", enter_phase)
        monkeypatch.setattr("deploy.rollout.plan._WORKER_PUBLISH", 0.0)
        monkeypatch.setattr("deploy.rollout.probe.Probe.begin", lambda _: None)


@pytest.fixture(scope="module")
def lengths() -> dict[tuple[float, ...], int]:
    """The number of moments of a rollout, by its shares."""
    found: dict[tuple[float, ...], int] = {}
    for shares in ((10.0,), (10.0, 50.0), (1.0, 10.0, 100.0)):
        with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as path:
            found[shares] = Play(monkeypatch, Path(path), shares, -1).moments
    return found


def moments_of(lengths: dict[tuple[float, ...], int]) -> st.SearchStrategy[tuple[tuple[float, ...], int]]:
    """Pairs of the shares of a canary and a moment of its rollout."""
    return st.sampled_from(sorted(lengths)).flatmap(
        lambda shares: st.tuples(st.just(shares), st.integers(0, lengths[shares] - 1))
    )


def test_abort_holds_at_every_moment(lengths: dict[tuple[float, ...], int]) -> None:
    """The candidate gets nothing after `abort` has returned; if it is refused, the message tells the reason truly."""
    outcomes = set()

    @settings(max_examples=150, deadline=None)
    @given(moments_of(lengths))
    def check(found: tuple[tuple[float, ...], int]) -> None:
        shares, chosen = found
        with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as path:
            play = Play(monkeypatch, Path(path), shares, chosen)
        record, whole = play.record, [f"{share:g}" for share in shares]
        assert play.file is None
        if play.refused is None:
            assert play.written[-1] == "aborted"
            assert "live" not in play.written
            assert play.written[:-1] == whole[: len(play.written) - 1]
            assert (record.outcome, record.by_operator) == ("rolled back", True)
            assert record.reason == "the operator aborted it"
            outcomes.add("aborted")
            return
        assert play.written == [*whole, "live"]
        assert record.outcome == "done"
        is_too_late = "too late: 1.1.0 is live" in str(play.refused)
        assert is_too_late == (play.refused.hint == "`glmctl rollback` goes back")
        assert is_too_late or "no canary is under way" in str(play.refused)
        outcomes.add("too late" if is_too_late else "too early")

    check()
    assert outcomes == {"aborted", "too late", "too early"}
