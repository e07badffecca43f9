"""The frame around every rollout: whatever ends a rollout, its record ends with the right outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.display import Display
from deploy.errors import Degraded, DrainCut, GlmError, NotReady, Refused, RolledBack
from deploy.host import Host
from deploy.journal.journal import Journal, begin
from deploy.journal.record import Phase, Record
from deploy.rollout.frame import recorded
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.rollout import undo


@dataclass
class Undo:
    """Counts its calls."""

    result: bool = True
    error: Exception | None = None
    calls: list[str] = field(default_factory=list)

    def __call__(self, rollout: Rollout) -> bool:
        self.calls.append(rollout.record.phase)
        if self.error:
            raise self.error
        return self.result


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


def test_success_is_done(rollout: Rollout, host: Host) -> None:
    """Without an exception nothing is undone."""
    put_back = Undo()
    with recorded(rollout, put_back):
        rollout.enter("start", "")
    assert put_back.calls == []
    assert (last(host).outcome, last(host).reason) == ("done", None)
    assert last(host).receipt is not None


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (Refused("no space"), "refused", "no space"),
        (NotReady("it crashed"), "not ready", "it crashed"),
        (KeyboardInterrupt(), "interrupted", "interrupted from the keyboard"),
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


def test_a_drain_cut_is_done(rollout: Rollout, host: Host) -> None:
    """The deadline cut requests, but the new version is live: exit code 6, nothing to undo."""
    put_back = Undo()
    with pytest.raises(DrainCut), recorded(rollout, put_back):
        raise DrainCut.of(3, "blue", 1.0)
    assert put_back.calls == []
    assert (last(host).outcome, last(host).reason) == ("done", "the drain deadline of 1 s cut 3 requests of blue")


def test_what_holds_for_good_is_done(rollout: Rollout, host: Host) -> None:
    """If the new version cannot be undone any more, the outcome is done, and the exception is raised."""
    with pytest.raises(KeyboardInterrupt), recorded(rollout, Undo(result=False)):
        raise KeyboardInterrupt
    assert (last(host).outcome, last(host).reason) == ("done", "interrupted from the keyboard")


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
        raise Degraded("the operator rolled it back", is_undone=True)
    assert put_back.calls == []
    assert (last(host).outcome, last(host).hooks) == ("rolled back", [])


def test_an_undo_that_fails_leaves_the_record_open(rollout: Rollout, host: Host) -> None:
    """The next command recovers then, as after a crash."""
    with (
        pytest.raises(GlmError, match="does not serve again"),
        recorded(rollout, Undo(error=GlmError("x does not serve again"))),
    ):
        raise NotReady("it crashed")
    assert [record.outcome for record in Journal(host).unfinished()] == [None]


@pytest.mark.parametrize(("phase", "is_undone"), [("preflight", True), ("bake", True), ("retire", False)])
def test_how_much_is_undone_depends_on_the_phase(rollout: Rollout, host: Host, phase: Phase, is_undone: bool) -> None:
    """Nothing was changed in the preflight; in the bake `live` was renamed back already; after it the version stays."""
    rollout.old = None if phase == "retire" else rollout.old
    rollout.enter(phase, "")
    before = {path.name: path.readlink() for path in host.root.iterdir()}
    assert undo(rollout) is is_undone
    assert {path.name: path.readlink() for path in host.root.iterdir()} == before
