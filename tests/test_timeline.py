"""The timeline: what is done, under way and to come, for each kind of rollout and each way in which it may end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from deploy.analysis.comparison import Verdict
from deploy.journal.journal import Phase, Record, Step
from deploy.reports.timeline import stages


def record(*phases: Phase, **more: Any) -> Record:
    """A rollout that entered a phase every 10 s."""
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
    "in the second step of three": (
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
    "on its way back": (
        record(*BEFORE, "cutover", "bake", "rollback"),
        [*(f"✓ {name}" for name in BEFORE), "✓ cutover", "✗ bake", "● rollback"],
    ),
    "rolled back": (
        record(*BEFORE, "cutover", "bake", "rollback", outcome="rolled back"),
        [*(f"✓ {name}" for name in BEFORE), "✓ cutover", "✗ bake", "✓ rollback"],
    ),
    "rolled back from another terminal": (
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
def test_order(rollout: Record, expected: Sequence[str]) -> None:
    """Each phase once, in the order in which it comes."""
    found = [f"{MARKS[one.state]} {one.name}" for one in stages(rollout)]
    assert found == list(expected)


def test_a_phase_lasts_until_the_next_one() -> None:
    """And the last one until the end; each canary step has its own verdict, and the bake has its."""
    verdicts = [Verdict(window="1 %"), Verdict(window="10 %"), Verdict(window="bake")]
    done = record(
        *BEFORE, "canary", "canary", "cutover", "bake", "retire",
        canary=[1, 10], step=9.0, bake=8.0, outcome="done", analysis=verdicts, ended_at="2026-01-01T00:01:23.000+00:00",
    )  # fmt: skip
    found = stages(done)
    assert [one.seconds for one in found] == [10.0] * 8 + [3.0]
    assert [one.verdict.window if one.verdict else None for one in found] == [
        *[None] * 4, "1 %", "10 %", None, "bake", None,
    ]  # fmt: skip
    assert [one.planned for one in found] == [*[None] * 4, 9.0, 9.0, None, 8.0, None]
