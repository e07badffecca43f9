"""The timeline of a rollout: phases that are done, running, failed or to come, for each kind and outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from deploy.analysis.verdict import Verdict
from deploy.journal.record import Phase, Record, Step
from deploy.reports.timeline import stages


def record(*phases: Phase, **more: Any) -> Record:
    """A rollout that entered one phase every 10 s."""
    plain: dict[str, Any] = {
        "id": "20260101-000000-01", "kind": "deploy", "version": "1.1.0", "slot": "green", "previous": "1.0.0",
        "previous_slot": "blue", "started_at": "2026-01-01T00:00:00.000+00:00",
        "steps": [Step(phase=phase, at=f"2026-01-01T00:{number // 6:02}:{number % 6}0.000+00:00")
                  for number, phase in enumerate(phases)],
    }  # fmt: skip
    return Record(**plain | more)


BEFORE: tuple[Phase, ...] = ("preflight", "prepare", "start", "verify")
CASES: dict[str, tuple[Record, Sequence[str]]] = {
    "just begun": (
        record("preflight", bake=60.0),
        ["● preflight", "· prepare", "· start", "· verify", "· cutover", "· bake", "· retire"],
    ),
    "in the second of three canary steps": (
        record(*BEFORE, "canary", "canary", canary=[1, 10, 50], bake=60.0),
        [
            *(f"✓ {name}" for name in BEFORE),
            *("✓ canary 1 %", "● canary 10 %", "· canary 50 %", "· cutover", "· bake", "· retire"),
        ],
    ),
    "nothing is live before": (
        record("preflight", "prepare", previous=None, previous_slot=None),
        ["✓ preflight", "● prepare", "· start", "· verify", "· cutover"],
    ),
    "a swap": (
        record("preflight", "prepare", strategy="swap", bake=60.0),
        ["✓ preflight", "● prepare", "· vacate", "· start", "· verify", "· cutover", "· bake", "· retire"],
    ),
    "a warm rollback": (record("rollback", kind="rollback"), ["● rollback"]),
    "a handover in place": (record("reload", kind="reload"), ["● reload"]),
    "done": (record(*BEFORE, "cutover", outcome="done"), [*(f"✓ {name}" for name in BEFORE), "✓ cutover"]),
    "not ready": (
        record("preflight", "prepare", "start", outcome="not ready"),
        ["✓ preflight", "✓ prepare", "✗ start"],
    ),
    "rolling back": (
        record(*BEFORE, "cutover", "bake", "rollback"),
        [*(f"✓ {name}" for name in BEFORE), "✓ cutover", "✗ bake", "● rollback"],
    ),
    "rolled back": (
        record(*BEFORE, "cutover", "bake", "rollback", outcome="rolled back"),
        [*(f"✓ {name}" for name in BEFORE), "✓ cutover", "✗ bake", "✓ rollback"],
    ),
    "rolled back by the operator": (
        record(*BEFORE, "cutover", "bake", outcome="rolled back"),
        [*(f"✓ {name}" for name in BEFORE), "✓ cutover", "✗ bake"],
    ),
    "no phase yet": (
        record(),
        ["· preflight", "· prepare", "· start", "· verify", "· cutover", "· bake", "· retire"],
    ),
}  # fmt: skip
MARKS = {"done": "✓", "running": "●", "failed": "✗", "to come": "·"}


@pytest.mark.parametrize(("rollout", "expected"), CASES.values(), ids=CASES.keys())
def test_states_and_order(rollout: Record, expected: Sequence[str]) -> None:
    """Every entered and planned phase is listed once, in order, with its state."""
    found = [f"{MARKS[stage.state]} {stage.name}" for stage in stages(rollout)]
    assert found == list(expected)


def test_durations_and_verdicts() -> None:
    """A phase lasts until the next one, the last until the end; canary steps and bake have their own verdicts."""
    verdicts = [Verdict(window="1 %"), Verdict(window="10 %"), Verdict(window="bake")]
    done = record(
        *BEFORE, "canary", "canary", "cutover", "bake", "retire",
        canary=[1, 10], step=9.0, bake=8.0, outcome="done", analysis=verdicts, ended_at="2026-01-01T00:01:23.000+00:00",
    )  # fmt: skip
    found = stages(done)
    assert [stage.seconds for stage in found] == [10.0] * 8 + [3.0]
    assert [stage.verdict.window if stage.verdict else None for stage in found] == [
        *[None] * 4, "1 %", "10 %", None, "bake", None,
    ]  # fmt: skip
    assert [stage.planned for stage in found] == [*[None] * 4, 9.0, 9.0, None, 8.0, None]
