"""A rollout's phases in order: what is done, what is under way and for how long, what is still to come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from deploy.analysis.comparison import Verdict
from deploy.journal.journal import Phase, Record, now, seconds_between

__all__ = ["Stage", "stages"]


@dataclass(frozen=True)
class Stage:
    """One phase; a canary has one for each of its steps."""

    phase: Phase
    state: Literal["done", "running", "failed", "to come"]
    share: float | None = None
    """The candidate's share in percent, in a canary step."""
    at: str | None = None
    seconds: float | None = None
    """How long it took, or has taken so far."""
    planned: float | None = None
    """How long it is to hold, where that was said."""
    verdict: Verdict | None = None

    @property
    def name(self) -> str:
        """The phase, and the share if it has one."""
        return self.phase if self.share is None else f"{self.phase} {self.share:g} %"


def stages(record: Record) -> list[Stage]:
    """Tell the phases that were entered, and those to come while it is under way."""
    found: list[Stage] = []
    verdicts = {"canary": [one for one in record.analysis if one.window != "bake"]}
    verdicts["bake"] = [one for one in record.analysis if one.window == "bake"]
    ends = [*(step.at for step in record.steps[1:]), record.ended_at or now()]
    counted: Counter[Phase] = Counter()
    for step, end in zip(record.steps, ends, strict=False):
        number = counted[step.phase]
        counted[step.phase] += 1
        judged = verdicts.get(step.phase, [])
        found.append(
            Stage(
                phase=step.phase,
                state=_state(record, len(found)),
                share=_share(record, step.phase, number),
                at=step.at,
                seconds=seconds_between(step.at, end),
                planned=_planned(record, step.phase),
                verdict=judged[number] if number < len(judged) else None,
            )
        )
    return found + (_to_come(record, counted) if record.outcome is None else [])


def _state(record: Record, number: int) -> Literal["done", "running", "failed"]:
    """What went wrong went wrong in the last phase, or in the one before the way back."""
    phases = [step.phase for step in record.steps]
    went_back = record.kind != "rollback" and phases[-1] == "rollback"
    if went_back and number == len(phases) - 2:
        return "failed"
    if number < len(phases) - 1:
        return "done"
    if record.outcome is None:
        return "running"
    return "done" if record.outcome == "done" or went_back else "failed"


def _to_come(record: Record, entered: Counter[Phase]) -> list[Stage]:
    """Those of the plan that lie behind the last one entered."""
    if entered["rollback"] or entered["reload"]:
        return []
    plan: list[Phase] = ["preflight", "prepare"]
    plan += ["vacate"] if record.strategy != "overlap" and record.previous_slot else []
    plan += ["start"] if record.strategy != "weights" else []
    plan += ["verify"]
    plan += ["canary"] * len(record.canary)
    plan += ["cutover"]
    plan += ["bake", "retire"] if record.previous_slot and record.strategy != "weights" else []
    left = plan[sum(entered[phase] for phase in set(plan)) :]
    numbers = Counter({"canary": entered["canary"]})
    found = []
    for phase in left:
        share = _share(record, phase, numbers["canary"])
        found.append(Stage(phase, "to come", share=share, planned=_planned(record, phase)))
        numbers[phase] += 1
    return found


def _share(record: Record, phase: Phase, number: int) -> float | None:
    return record.canary[number] if phase == "canary" and number < len(record.canary) else None


def _planned(record: Record, phase: Phase) -> float | None:
    return {"canary": record.step, "bake": record.bake}.get(phase)
