"""The phases of a rollout in order: done, running, failed, or to come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from deploy.analysis.verdict import Verdict
from deploy.journal.record import Phase, Record, now, seconds_between

__all__ = ["Stage", "stages"]


@dataclass(frozen=True)
class Stage:
    """One phase, or one step of a canary."""

    phase: Phase
    state: Literal["done", "running", "failed", "to come"]
    share: float | None = None
    """Share of the requests in percent; None outside a canary."""
    at: str | None = None
    """When it began (ISO 8601)."""
    seconds: float | None = None
    """Its duration, until now if it is running."""
    planned: float | None = None
    """Its planned duration in seconds; None without a plan."""
    verdict: Verdict | None = None

    @property
    def name(self) -> str:
        """The phase, with its share in a canary."""
        return self.phase if self.share is None else f"{self.phase} {self.share:g} %"

    def document(self) -> dict[str, Any]:
        """Return what `status --json` prints: without the seconds of a running phase, which change all the time."""
        return {
            "phase": self.phase,
            "state": self.state,
            "share": self.share,
            "at": self.at,
            "seconds": None if self.state == "running" else self.seconds,
            "planned": self.planned,
        }


def stages(record: Record) -> list[Stage]:
    """Return the phases that were entered, and while the rollout is under way, those to come."""
    entered: list[Stage] = []
    verdicts = {"canary": [verdict for verdict in record.analysis if verdict.window != "bake"]}
    verdicts["bake"] = [verdict for verdict in record.analysis if verdict.window == "bake"]
    ends = [*(step.at for step in record.steps[1:]), record.ended_at or now()]
    counts: Counter[Phase] = Counter()
    for step, end in zip(record.steps, ends, strict=False):
        number = counts[step.phase]
        counts[step.phase] += 1
        judged = verdicts.get(step.phase, [])
        entered.append(
            Stage(
                phase=step.phase,
                state=_state(record, len(entered)),
                share=_share(record, step.phase, number),
                at=step.at,
                seconds=seconds_between(step.at, end),
                planned=_planned(record, step.phase),
                verdict=judged[number] if number < len(judged) else None,
            )
        )
    return entered + (_to_come(record, counts) if record.outcome is None else [])


def _state(record: Record, number: int) -> Literal["done", "running", "failed"]:
    """Return the state of the phase with that number. The one that failed is the last, or the one before a rollback."""
    phases = [step.phase for step in record.steps]
    rolled_back = record.kind != "rollback" and phases[-1] == "rollback"
    if rolled_back and number == len(phases) - 2:
        return "failed"
    if number < len(phases) - 1:
        return "done"
    if record.outcome is None:
        return "running"
    return "done" if record.outcome == "done" or rolled_back else "failed"


def _to_come(record: Record, entered: Counter[Phase]) -> list[Stage]:
    """Return the planned phases that were not entered yet."""
    if entered["rollback"] or entered["reload"]:
        return []
    plan: list[Phase] = ["preflight", "prepare"]
    plan += ["vacate"] if record.strategy != "overlap" and record.previous_slot else []
    plan += ["start"] if record.strategy != "weights" else []
    plan += ["verify"]
    plan += ["canary"] * len(record.canary)
    plan += ["cutover"]
    plan += ["bake", "retire"] if record.previous_slot and record.strategy != "weights" else []
    remaining = plan[sum(entered[phase] for phase in set(plan)) :]
    numbers = Counter({"canary": entered["canary"]})
    stages = []
    for phase in remaining:
        share = _share(record, phase, numbers["canary"])
        stages.append(Stage(phase, "to come", share=share, planned=_planned(record, phase)))
        numbers[phase] += 1
    return stages


def _share(record: Record, phase: Phase, number: int) -> float | None:
    return record.canary[number] if phase == "canary" and number < len(record.canary) else None


def _planned(record: Record, phase: Phase) -> float | None:
    return {"canary": record.step, "bake": record.bake}.get(phase)
