"""Comparison of the shares of failed responses.

Errors are judged as soon as they come, by Fisher's exact test. Failures of the same moment may have one cause, and
count once in the test: a version that fails every response is found after a few seconds all the same.
"""

from __future__ import annotations

from deploy.analysis.group import Failures
from deploy.analysis.statistics import fisher_exact
from deploy.analysis.verdict import Metric, MetricName
from deploy.policy import Limits

__all__ = ["compare_errors"]

_REQUESTS: dict[MetricName, str] = {"errors": "requests", "answer errors": "chat requests"}


def compare_errors(
    name: MetricName, candidate: Failures, live: Failures, before: Failures, limits: Limits, level: float | None
) -> Metric:
    """Compare the shares of failed responses; without a `level` only return them.

    The test uses the live slot's responses in the window and before it, because errors do not depend on load. The
    margin uses those in the window alone, if there are any, so that a fault that affects both slots is not counted
    against the candidate.
    """
    beside = live if live.count else before
    share = candidate.share
    metric = Metric(
        name=name,
        candidate=share,
        live=beside.share,
        candidate_requests=candidate.count,
        live_requests=beside.count,
        blocks=len(candidate.periods),
        blocks_worse=len(candidate.incidents),
    )
    if level is None or share is None:
        return metric
    failed = f"{share:.1%} of its {candidate.count} {_REQUESTS[name]} failed"
    if limits.max_error_rate is not None and share > limits.max_error_rate and candidate.failed > 1:
        return metric.mark_worse(f"{failed}, limit {limits.max_error_rate:.1%}")
    if beside.share is None or share - beside.share <= limits.error_margin:
        return metric
    metric.p_value = fisher_exact(*candidate.independent, *(before + live).independent)
    if metric.p_value < level:
        slot = "live slot" if beside is live else "live slot before"
        return metric.mark_worse(f"{failed}, {slot} {beside.share:.1%}, at {len(candidate.incidents)} different times")
    return metric
