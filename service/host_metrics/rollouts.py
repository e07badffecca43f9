"""The rollout that runs, and how many ended how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from service.contract import rollout_report

__all__ = ["collect"]


def collect(runtime: Path) -> Iterator[Metric]:
    """Yield the metrics of what `glmctl` reports."""
    report = rollout_report.read(runtime)
    running = GaugeMetricFamily(
        "glm_rollout_running",
        "Rollouts that run now, by phase.",
        labels=["id", "kind", "strategy", "version", "slot", "phase"],
    )
    began = GaugeMetricFamily(
        "glm_rollout_phase_timestamp_seconds",
        "When the phase of a running rollout began, since the epoch.",
        labels=["id", "phase"],
    )
    for one in report.rollouts:
        if one.is_running:
            running.add_metric([one.id, one.kind, one.strategy, one.version, one.slot, one.phase], 1)
            began.add_metric([one.id, one.phase], one.phase_began)
    interrupted = GaugeMetricFamily(
        "glm_rollout_interrupted",
        "Whether a rollout has not ended although its controller is dead.",
        value=any(one.is_interrupted for one in report.rollouts),
    )
    ended = CounterMetricFamily(
        "glm_rollouts", "Rollouts that ended since the host started, by outcome.", labels=["kind", "outcome"]
    )
    for count in report.ended:
        ended.add_metric([count.kind, count.outcome], count.count)
    yield from (running, began, interrupted, ended)
