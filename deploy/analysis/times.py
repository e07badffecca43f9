"""Comparison of the 95th percentiles of times."""

from __future__ import annotations

from collections.abc import Callable

from deploy.analysis.blocks import Evidence
from deploy.analysis.group import Times
from deploy.analysis.verdict import Metric, MetricName
from deploy.policy import Limits

__all__ = ["Test", "compare_times"]

Test = Callable[[Times, Times], Evidence | None]


def compare_times(
    name: MetricName,
    times: Times,
    live_times: Times,
    limits: Limits,
    *,
    test: Test | None = None,
    level: float | None = None,
    is_limit_due: bool = False,
) -> Metric:
    """Compare the 95th percentiles of times.

    `is_limit_due`: whether the operator's absolute limit is applied. `test`, `level`: how the difference is tested; it
    is not if `level` is None. Mirrored responses are held to the absolute limits alone: each of them was computed while
    the same device served the live slot's request, which most of the live slot's responses were not.
    """
    metric = Metric(
        name=name,
        candidate=times.p95,
        live=live_times.p95,
        candidate_requests=len(times),
        live_requests=len(live_times),
    )
    if metric.candidate is None:
        return metric
    limit = limits.max_ttft_p95 if "ttft" in name else limits.max_p95
    if is_limit_due and limit is not None and metric.candidate > limit:
        return metric.mark_worse(f"{name} {metric.candidate:.3g} s, limit {limit:g} s")
    if test is None or level is None or metric.live is None or len(live_times) < limits.min_requests:
        return metric
    evidence = test(times, live_times)
    if evidence is None:
        return metric
    metric.blocks, metric.blocks_worse = evidence.blocks, evidence.blocks_slower
    if metric.candidate <= max(metric.live * (1 + limits.p95_margin), metric.live + limits.min_difference):
        return metric
    metric.p_value = evidence.p_value
    if evidence.holds and evidence.p_value < level:
        return metric.mark_worse(
            f"{name} {metric.candidate:.3g} s, live slot {metric.live:.3g} s, "
            f"slower in {evidence.blocks_slower} of {evidence.blocks} blocks of time"
        )
    return metric
