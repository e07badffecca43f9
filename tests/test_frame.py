"""The frame around every rollout: whatever ends a rollout, its record ends with the right outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.display import Display
from deploy.errors import Degraded, DrainCut, GlmError, Interrupted, NotReady, Refused, RolledBack
from deploy.host import Host
from deploy.journal.journal import Journal, begin
from deploy.journal.record import Phase, Record, Strategy
from deploy.rollout import candidate as removing
from deploy.rollout import reload as reloading
from deploy.rollout import rollout as rolling
from deploy.rollout import undo as undoing
from deploy.rollout import weights
from deploy.rollout.frame import recorded
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.undo import undo
from deploy.rollout.weights import WeightsRollout
from deploy.systemd.timers import Timers
from tests.rollout_fixtures import Moments, ScriptedContext, directories


@dataclass
class Undo:
    """Counts its calls."""

    result: bool = True
    error: BaseException | None = None
    calls: list[str] = field(default_factory=list)

    def __call__(self, rollout: Rollout) -> bool:
        self.calls.append(rollout.record.phase)
        if self.error:
            raise self.error
        return self.result


@pytest.fixture(autouse=True)
def guards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The guards that are active; there is no service manager."""
    active: list[str] = []
    monkeypatch.setattr(Timers, "start_guard", lambda _, identifier: active.append(identifier))
    monkeypatch.setattr(Timers, "stop_guard", lambda _, identifier: active.remove(identifier))
    return active


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with directories only, on which 1.0.0 is live in blue."""
    for name in ("root", "run", "state"):
        (tmp_path / name).mkdir()
    (tmp_path / "root/blue").symlink_to("releases/1.0.0")
    (tmp_path / "root/live").symlink_to("blue")
    return Host(
        user=True,
        root=tmp_path / "root",
        runtime=tmp_path / "run",
        state=tmp_path / "state",
        units=tmp_path,
        settings=tmp_path / "glm.env",
    )


@pytest.fixture
def rollout(host: Host) -> Rollout:
    """A deploy of 1.1.0 to green whose first phase has begun."""
    (host.state / "history").mkdir()
    found = Rollout.begin(
        Context(host, Display(quiet=True)), Plan("1.1.0"), begin(Journal(host), "deploy", "1.1.0", "green")
    )
    found.enter("preflight", "")
    return found


def last(host: Host) -> Record:
    """Return the only record, as it is on disk."""
    [record] = Journal(host).records()
    return record


def test_success_is_done(rollout: Rollout, host: Host, guards: list[str]) -> None:
    """Without an exception nothing is undone. The guard runs from the first phase that changes something to the end."""
    put_back = Undo()
    assert guards == []
    with recorded(rollout, put_back):
        rollout.enter("prepare", "")
        rollout.enter("start", "")
        assert guards == [rollout.record.id]
    assert put_back.calls == guards == []
    assert (last(host).outcome, last(host).reason) == ("done", None)
    assert last(host).receipt is not None


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (Refused("no space"), "refused", "no space"),
        (NotReady("it crashed"), "not ready", "it crashed"),
        (GlmError("disk full"), "failed", "disk full"),
        (ZeroDivisionError(), "failed", "ZeroDivisionError"),
        (SystemExit(2), "failed", "2"),
    ],
)
def test_an_exception_is_undone_recorded_and_raised(
    rollout: Rollout, host: Host, error: BaseException, outcome: str, reason: str
) -> None:
    """Foreseen or not, an exception leaves no unfinished record."""
    put_back = Undo()
    rollout.enter("start", "")
    with pytest.raises(type(error)) as raised, recorded(rollout, put_back):
        raise error
    assert raised.value is error
    assert put_back.calls == ["start"]
    assert (last(host).outcome, last(host).reason) == (outcome, reason)
    assert Journal(host).unfinished() == []


@pytest.mark.parametrize(
    ("is_undone", "outcome", "state"),
    [
        (True, "interrupted", "interrupted in start: 1.0.0 is live in blue, the deploy of 1.1.0 was undone"),
        (False, "done", "interrupted in start: 1.0.0 is live in blue, the deploy of 1.1.0 is done"),
    ],
)
def test_ctrl_c_tells_the_state_that_it_leaves(
    rollout: Rollout, host: Host, is_undone: bool, outcome: str, state: str
) -> None:
    """The message names the phase, the live version, and whether the new version stays."""
    rollout.enter("start", "")
    with pytest.raises(Interrupted) as raised, recorded(rollout, Undo(result=is_undone)):
        raise KeyboardInterrupt
    assert str(raised.value) == state
    assert raised.value.exit_code == 130
    assert (last(host).outcome, last(host).reason) == (outcome, "interrupted from the keyboard")


def test_a_second_ctrl_c_leaves_the_record_open(rollout: Rollout, host: Host, guards: list[str]) -> None:
    """Ctrl-C while the rollout is undone: the message tells what is live, and that a timer goes on."""
    rollout.enter("start", "")
    with pytest.raises(Interrupted) as raised, recorded(rollout, Undo(error=KeyboardInterrupt())):
        raise KeyboardInterrupt
    assert str(raised.value).endswith("1.0.0 is live in blue, the deploy of 1.1.0 is not finished")
    assert "glmctl resume" in (raised.value.hint or "")
    assert guards == [record.id for record in Journal(host).unfinished()]


def test_a_drain_cut_is_done(rollout: Rollout, host: Host) -> None:
    """The deadline cut requests, but the new version is live: exit code 6, nothing to undo."""
    put_back = Undo()
    with pytest.raises(DrainCut), recorded(rollout, put_back):
        raise DrainCut.of(3, "blue", 1.0)
    assert put_back.calls == []
    assert (last(host).outcome, last(host).reason) == ("done", "the drain deadline of 1 s cut 3 requests of blue")


def test_a_worse_candidate_may_have_to_stay(rollout: Rollout, host: Host) -> None:
    """If the old version does not serve, the candidate stays: record and message have both reasons; no hook runs."""
    host.policy.write_text('[hooks]\non_rollback = ["cat"]\n')
    rollout.kept = "it stays live, because blue does not serve"
    with pytest.raises(GlmError) as raised, recorded(rollout, Undo(result=False)):
        raise Degraded("p95 0.77 s, live slot 0.51 s")
    reason = "p95 0.77 s, live slot 0.51 s; it stays live, because blue does not serve"
    assert str(raised.value) == f"1.1.0 is to be rolled back: {reason}"
    assert raised.value.exit_code == 1
    assert (last(host).outcome, last(host).reason, last(host).hooks) == ("done", reason, [])


def test_a_worse_candidate_is_rolled_back(rollout: Rollout, host: Host) -> None:
    """It is undone, the on_rollback hooks run, and the message tells why."""
    host.policy.write_text('[hooks]\non_rollback = ["cat"]\n')
    put_back = Undo()
    with pytest.raises(RolledBack) as raised, recorded(rollout, put_back):
        raise Degraded("p95 0.77 s, live slot 0.51 s")
    assert str(raised.value) == "1.1.0 was rolled back: p95 0.77 s, live slot 0.51 s"
    assert raised.value.exit_code == 5
    assert put_back.calls == ["preflight"]
    record = last(host)
    assert (record.outcome, record.reason) == ("rolled back", "p95 0.77 s, live slot 0.51 s")
    [hook] = record.hooks
    assert (hook.when, hook.code) == ("on_rollback", 0)
    assert '"version": "1.1.0"' in hook.output or len(hook.output) == 300


def test_what_another_process_has_undone_is_left_alone(rollout: Rollout, host: Host) -> None:
    """`glmctl rollback` renamed `live` and ran the hooks itself."""
    host.policy.write_text('[hooks]\non_rollback = ["cat"]\n')
    put_back = Undo()
    with pytest.raises(RolledBack), recorded(rollout, put_back):
        raise Degraded("the operator rolled it back", is_undone=True, by_operator=True)
    assert put_back.calls == []
    assert (last(host).outcome, last(host).hooks, last(host).by_operator) == ("rolled back", [], True)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(GlmError("x does not serve again"), "x does not serve again"), (ZeroDivisionError(), "ZeroDivisionError")],
)
def test_an_undo_that_fails_leaves_the_record_open(
    rollout: Rollout, host: Host, guards: list[str], error: Exception, reason: str
) -> None:
    """The message has both reasons, and the guard goes on, as after a crash."""
    rollout.enter("start", "")
    with pytest.raises(GlmError) as raised, recorded(rollout, Undo(error=error)):
        raise NotReady("it crashed")
    assert str(raised.value) == f"it crashed; and what was done until start cannot be undone yet: {reason}"
    assert guards == [record.id for record in Journal(host).unfinished()]


@pytest.mark.parametrize(("phase", "is_undone"), [("preflight", True), ("bake", True), ("retire", False)])
def test_how_much_is_undone_depends_on_the_phase(rollout: Rollout, host: Host, phase: Phase, is_undone: bool) -> None:
    """Nothing was changed in the preflight; in the bake `live` was renamed back already; after it the version stays."""
    rollout.old = None if phase == "retire" else rollout.old
    rollout.enter(phase, "")
    before = {path.name: path.readlink() for path in host.root.iterdir()}
    assert undo(rollout) is is_undone
    assert {path.name: path.readlink() for path in host.root.iterdir()} == before


PHASES = ("preflight", "prepare", "vacate", "start", "verify", "canary", "cutover", "bake", "retire")


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedContext]:
    """A host without processes, on which every way back succeeds at once."""
    for name in ("undrained", "generations"):
        monkeypatch.setattr(f"deploy.rollout.{'retire' if name == 'undrained' else 'swap'}.{name}", lambda *_: [])
    for module in (undoing, removing):
        monkeypatch.setattr(module, "revive", lambda *_: None)
    monkeypatch.setattr(undoing, "require_answer", lambda *_: None)
    monkeypatch.setattr(undoing, "rename", lambda rollout, slot, _: rollout.context.slots.go_live(slot))
    monkeypatch.setattr("deploy.rollout.plan._WORKER_PUBLISH", 0.0)
    (tmp_path / "scripted").mkdir()
    with directories(tmp_path / "scripted") as host:
        yield ScriptedContext.of(host, Moments())


def fail(*_: object, **__: object) -> None:
    raise ZeroDivisionError("three of none")


@pytest.mark.parametrize("strategy", ["overlap", "swap"])
@pytest.mark.parametrize("broken", PHASES)
def test_an_unexpected_exception_in_any_phase(
    scripted: ScriptedContext, monkeypatch: pytest.MonkeyPatch, guards: list[str], broken: Phase, strategy: Strategy
) -> None:
    """The record ends with the reason, one version is live, the exception is raised, and no guard is left."""

    def script(phase: Phase) -> Callable[[Rollout], None]:
        def play(rollout: Rollout) -> None:
            rollout.enter(phase, "")
            if phase == "cutover":
                scripted.slots.go_live("green")
            if phase == broken:
                fail()

        return play

    for phase in PHASES:
        monkeypatch.setattr(rolling, phase, script(phase))  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        rolling.deploy(scripted, Plan("1.1.0", strategy=strategy))
    is_done = broken == "retire"
    assert (last(scripted.host).outcome, last(scripted.host).reason) == (
        "done" if is_done else "failed",
        "three of none",
    )
    assert scripted.slots.live == ("green" if is_done else "blue")
    assert guards == []


@pytest.mark.parametrize("broken", ["create", "prepare", "vacate", "verify", "cutover"])
def test_an_unexpected_exception_in_a_weight_swap(
    scripted: ScriptedContext, monkeypatch: pytest.MonkeyPatch, guards: list[str], broken: str
) -> None:
    """The same for the strategy weights."""
    monkeypatch.setattr(weights, "preflight", lambda rollout: rollout.enter("preflight", ""))
    fake = type("Fake", (), {name: lambda self: None for name in ("prepare", "vacate", "verify", "cutover")})
    monkeypatch.setattr(WeightsRollout, "create", lambda rollout: fake())
    if broken == "create":
        monkeypatch.setattr(WeightsRollout, "create", fail)
    else:
        setattr(fake, broken, fail)
    with pytest.raises(ZeroDivisionError):
        rolling.deploy(scripted, Plan("1.1.0", strategy="weights"))
    assert (last(scripted.host).outcome, last(scripted.host).reason) == ("failed", "three of none")
    assert guards == []


def test_an_unexpected_exception_in_a_reload(
    scripted: ScriptedContext, monkeypatch: pytest.MonkeyPatch, guards: list[str]
) -> None:
    """The same for a reload: the slot leads to the old release again."""
    monkeypatch.setattr(reloading, "require_units", lambda _: None)
    monkeypatch.setattr("deploy.releases.store.Releases.ensure", lambda *_: None)
    monkeypatch.setattr("deploy.rollout.new_generation.NewGeneration.wait", fail)
    monkeypatch.setattr("deploy.systemd.systemctl.Systemd.reloading", lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        reloading.reload(scripted, Plan("1.1.0", kind="reload"))
    assert (last(scripted.host).outcome, scripted.slots.version("blue")) == ("failed", "1.0.0")
    assert guards == []
