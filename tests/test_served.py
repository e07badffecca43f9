"""The version to go back to: it served last, and was not found worse since."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from deploy.analysis.verdict import Verdict
from deploy.journal.record import Record, Step
from deploy.journal.served import condemned, last_condemned, previous_version

VERSIONS = ("1", "2", "3", "4")
ENDS = (
    "done", "worse in canary", "worse in bake", "worse but stays", "rolled back by hand", "aborted", "refused",
    "not ready", "interrupted", "failed", "in bake",
)  # fmt: skip


@dataclass
class History:
    """A host whose rollouts are played one by one: what was live, and what was found worse, in truth."""

    records: list[Record] = field(default_factory=list)
    lived: list[str] = field(default_factory=list)
    """Every version that became live, in order."""
    bad: set[str] = field(default_factory=set)

    @property
    def live(self) -> str:
        return self.lived[-1]

    def deploy(self, version: str, end: str) -> None:
        """Play one deploy; `end` is one of ENDS."""
        record = self._record("deploy", version)
        record.outcome = {"in bake": None, "worse but stays": "done"}.get(end, end)
        match end:
            case "done":
                self.lived.append(version)
                self.bad.discard(version)
            case "in bake":  # what was found before stands until the bake has ended
                self.lived.append(version)
            case "worse in canary" | "worse in bake":
                record.outcome = "rolled back"
                self.lived += [version, self.live] if end == "worse in bake" else []
                self.bad.add(version)
            case "worse but stays":
                record.analysis.append(Verdict(window="bake", outcome="worse"))
                self.lived.append(version)
                self.bad.add(version)
            case "rolled back by hand":
                record.outcome, record.by_operator = "rolled back", True
                self.lived.append(version)
                self.rollback(record.previous or "")
            case "aborted":
                record.outcome, record.by_operator = "rolled back", True

    def rollback(self, version: str) -> None:
        """Play a rollback, which the operator may have forced."""
        self._record("rollback", version).outcome = "done"
        self.lived.append(version)
        self.bad.discard(version)

    def _record(self, kind: str, version: str) -> Record:
        previous = self.live if self.lived else None
        record = Record(id="", kind=kind, version=version, slot="blue", previous=previous, started_at="")
        self.records.append(record)
        return record

    @property
    def expected(self) -> str | None:
        """The version that was live last, apart from the live one and those found worse."""
        return next((one for one in reversed(self.lived) if one != self.live and one not in self.bad), None)


steps = st.lists(st.tuples(st.sampled_from(VERSIONS), st.sampled_from(("rollback", *ENDS))), max_size=12)


def play(found: list[tuple[str, str]]) -> History:
    """Play rollouts after a first deploy of version 1; those of the live version are left out, as by glmctl."""
    history = History()
    history.deploy("1", "done")
    for number, (version, end) in enumerate(found, start=1):
        if version == history.live or (end == "in bake" and number < len(found)):
            continue
        history.rollback(version) if end == "rollback" else history.deploy(version, end)
    return history


@given(steps)
def test_rollback_goes_to_the_version_that_served_last(found: list[tuple[str, str]]) -> None:
    """Over generated histories, the derived version is the one that was live last and was not found worse since."""
    history = play(found)
    assert previous_version(history.records, history.live) == history.expected
    for version in VERSIONS:
        assert bool(condemned(history.records, version)) == (version in history.bad)
    worst = last_condemned(history.records, history.live)
    assert (worst is not None) == bool(history.bad - {history.live})


@given(steps)
def test_rollbacks_never_meet_a_condemned_version(found: list[tuple[str, str]]) -> None:
    """However often the operator rolls back without naming a version, none that was found worse becomes live."""
    history = play(found)
    for _ in range(4):
        target = previous_version(history.records, history.live)
        if target is None:
            break
        assert target not in history.bad
        for record in history.records:
            if record.outcome is None:  # the rollback ends the deploy that bakes
                record.outcome, record.by_operator = "rolled back", True
        before = history.live
        history.rollback(target)
        assert history.live == target != before


def test_a_second_rollback_undoes_the_first() -> None:
    """The operator rolled 2 back in its bake: the version that served before the rollback is 2 again."""
    history = play([("2", "rolled back by hand")])
    assert (history.live, previous_version(history.records, "1")) == ("1", "2")


def test_a_rollback_undoes_a_rename_by_hand() -> None:
    """`live` was renamed back by hand in the bake of 2, which has not ended or ended by that: 2 served before."""
    history = play([("2", "in bake")])
    history.records[-1].steps.append(Step(phase="bake", at=""))
    assert previous_version(history.records, "1") == "2"
    history.records[-1].outcome, history.records[-1].by_operator = "rolled back", True
    assert previous_version(history.records, "1") == "2"
    history.records[-1].by_operator = False
    assert previous_version(history.records, "1") is None


def test_a_version_that_was_rolled_back_by_the_analysis_is_named() -> None:
    """Nothing else served before: there is no version to go back to, and the record has the reason."""
    history = play([("2", "worse in bake")])
    assert previous_version(history.records, "1") is None
    found = last_condemned(history.records, "1")
    assert found is not None
    assert found.version == "2"
