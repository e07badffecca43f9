"""Comparison of a candidate's responses with the live slot's.

A candidate is worse if two things hold: a figure that an operator watches (the share of errors, the 95th percentile of
times) differs by more than a margin, and the difference is significant.

Errors: Fisher's exact test on the failed responses. Times: the smaller p-value of two tests, doubled. Fisher's exact
test on the responses beyond the 95th percentile of both groups together finds a version that is slower with some
requests; the Mann-Whitney test on all times finds a version that is slower with every request much earlier.

A rollout looks repeatedly, and every look could raise a false alarm: `AlphaSpending` divides the level among them.

Responses within one second are not independent: a pause of the machine delays all of them. Times are therefore compared
only when they span several seconds, and the candidate must be slower, by half the margin at least, in each third of
them. Responses from before the candidate has warmed up count for errors alone: the first ones of any version are slow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Literal

from pydantic import BaseModel, Field

from deploy.analysis.samples import Sample
from deploy.analysis.statistics import AlphaSpending, binomial, fisher_exact, mann_whitney, p95, thirds
from deploy.policy import Limits

__all__ = ["Comparison", "Group", "Metric", "MetricName", "Verdict", "measure"]

MetricName = Literal["errors", "p95", "ttft p95", "mirrored p95", "mirrored ttft p95", "agreement"]

_KEPT = 20_000  # responses of one group; older ones are dropped
_EARLIER_ERRORS = 5  # errors are tested from a fifth of the responses that times need
_TIMES: dict[MetricName, MetricName] = {"p95": "mirrored p95", "ttft p95": "mirrored ttft p95"}


class Metric(BaseModel):
    """One compared figure: a share from 0 to 1, or seconds; None where nothing was measured."""

    name: MetricName
    candidate: float | None = None
    live: float | None = None
    candidate_requests: int = 0
    live_requests: int = 0
    p_value: float | None = None
    """The probability of such a difference by chance; None if it is within the margin or the responses are too few."""
    worse: bool = False
    why: str | None = None


class Verdict(BaseModel):
    """The result of one window: a canary step or the bake."""

    window: str
    at: str = ""
    seconds: float = 0.0
    metrics: list[Metric] = Field(default_factory=list)
    mirrored: int = 0
    """The candidate's responses to mirrored requests, which no client received."""
    length_ratio: float | None = None
    """The length of those responses divided by the live slot's; the median."""
    outcome: Literal["not worse", "worse", "too few requests"] = "too few requests"
    reason: str | None = None


@dataclass
class Group:
    """The responses of one side in one window."""

    samples: list[Sample] = field(default_factory=list)
    times_from: float = 0.0
    """CLOCK_MONOTONIC seconds; the times of responses that ended earlier do not count."""

    @property
    def errors(self) -> int:
        """The number of failed responses."""
        return sum(sample.is_error for sample in self.samples)

    @property
    def error_rate(self) -> float | None:
        """The share of failed responses, from 0 to 1; None without responses."""
        return self.errors / len(self.samples) if self.samples else None

    def select(self, *, mirrored: bool) -> Group:
        """Return the responses to mirrored requests, or those to clients."""
        return replace(self, samples=[sample for sample in self.samples if sample.is_mirrored == mirrored])

    def times(self) -> dict[MetricName, list[float]]:
        """Return the seconds of the model's successful responses by metric, in the order in which they ended."""
        found = [
            sample
            for sample in self.samples
            if sample.status == 200 and sample.is_answer and sample.at >= self.times_from
        ]
        found.sort(key=attrgetter("at"))
        return {
            "p95": [sample.seconds for sample in found],
            "ttft p95": [sample.first for sample in found if sample.first is not None],
        }


class Comparison:
    """The groups of one window, which grow as responses come, and the metrics of the last look.

    `windows`: the number of windows of the rollout; they share the false alarms equally, and so do the metrics of each.
    `times_from`: when the candidate has warmed up to its share of the requests, CLOCK_MONOTONIC seconds.
    """

    def __init__(self, limits: Limits, *, windows: int, times_from: float = 0.0) -> None:
        self.limits = limits
        self.candidate, self.live = Group(times_from=times_from), Group()
        self.before = Group()
        """The live slot's responses from before the window."""
        self.metrics: list[Metric] = []
        tested = 3 if limits.min_agreement is None else 4
        alpha, least = limits.false_alarms / windows / tested, limits.min_requests
        names: tuple[MetricName, ...] = (*_TIMES.keys(), *_TIMES.values(), "agreement")
        self._spending: dict[MetricName, AlphaSpending] = {name: AlphaSpending(least, alpha) for name in names}
        self._spending["errors"] = AlphaSpending(max(1, least // _EARLIER_ERRORS), alpha)

    def look(self, *, last: bool = False, include_times: bool = True) -> str | None:
        """Test the metrics whose look is due; returns why the candidate is worse, or None.

        `include_times`: whether the times span enough seconds to be tested.
        """
        candidate, live = self.candidate, self.live
        for group in (candidate, live, self.before):
            del group.samples[:-_KEPT]
        level = self._spending["errors"].next_level(len(candidate.samples), last=last)
        metrics = [_errors(candidate, live, self.before, self.limits, level)]
        served, mirrored = candidate.select(mirrored=False), candidate.select(mirrored=True)
        served_times, mirrored_times, live_times = served.times(), mirrored.times(), live.times()
        for name, mirrored_name in _TIMES.items():
            times, reference = served_times[name], live_times[name]
            level = self._spending[name].next_level(len(times), last=last) if include_times else None
            metrics.append(_times(name, times, reference, self.limits, level))
            times = mirrored_times[name]
            level = self._spending[mirrored_name].next_level(len(times), last=last)
            metrics.append(_times(mirrored_name, times, reference, self.limits, level))
        greedy = [sample.agrees for sample in candidate.samples if sample.agrees is not None]
        level = self._spending["agreement"].next_level(len(greedy), last=last)
        metrics.append(_agreement(sum(greedy), len(greedy), self.limits, level))
        self.metrics = [_keep_p_value(metric, self.metrics) for metric in metrics if metric.candidate_requests]
        return next((metric.why for metric in metrics if metric.worse), None)

    @property
    def has_enough_requests(self) -> bool:
        """Whether at least one metric had the responses that a test needs."""
        return any(metric.candidate_requests >= self._spending[metric.name].first for metric in self.metrics)

    def __str__(self) -> str:
        parts = [f"{len(self.candidate.samples)} responses, {self.candidate.errors} failed"]
        parts += [
            f"{metric.name} {metric.candidate:.3g} s (live {metric.live:.3g} s)"
            for metric in self.metrics
            if metric.name in _TIMES and metric.candidate is not None and metric.live is not None
        ]
        parts += [
            f"{metric.candidate:.0%} of {metric.candidate_requests} mirrored responses equal"
            for metric in self.metrics
            if metric.name == "agreement" and metric.candidate is not None
        ]
        return ", ".join(parts)


def measure(candidate: Group, live: Group) -> list[Metric]:
    """Return the errors and times of both groups without a test."""
    limits = Limits()
    metrics = [_errors(candidate, live, Group(), limits, None)]
    times, live_times = candidate.times(), live.times()
    metrics += [_times(name, times[name], live_times[name], limits, None) for name in _TIMES]
    return [metric for metric in metrics if metric.candidate_requests]


def _errors(candidate: Group, live: Group, before: Group, limits: Limits, level: float | None) -> Metric:
    """Compare the shares of failed responses.

    The test uses the live slot's responses in the window and before it, because errors do not depend on load. The
    margin uses those in the window alone, so that a fault that affects both slots is not counted against the candidate.
    """
    failed, count = candidate.errors, len(candidate.samples)
    share, live_share = failed / count if count else None, live.error_rate
    metric = Metric(
        name="errors", candidate=share, live=live_share, candidate_requests=count, live_requests=len(live.samples)
    )
    if level is None or share is None:
        return metric
    if limits.max_error_rate is not None and share > limits.max_error_rate and failed > 1:
        return _worse(metric, f"{share:.1%} of its {count} requests failed, limit {limits.max_error_rate:.1%}")
    reference = Group([*before.samples, *live.samples])
    if not reference.samples or share - (live_share or 0.0) <= limits.error_margin:
        return metric
    metric.p_value = fisher_exact(failed, count, reference.errors, len(reference.samples))
    if metric.p_value < level:
        other = f"live slot {live_share:.1%}" if live_share is not None else f"live slot before {before.error_rate:.1%}"
        return _worse(metric, f"{share:.1%} of its {count} requests failed, {other}")
    return metric


def _times(
    name: MetricName, times: list[float], live_times: list[float], limits: Limits, level: float | None
) -> Metric:
    """Compare the 95th percentiles of times.

    Mirrored responses are held to the operator's absolute limits alone: each of them was computed while the same device
    served the live slot's request, which most of the live slot's responses were not.
    """
    metric = Metric(
        name=name,
        candidate=p95(times),
        live=p95(live_times),
        candidate_requests=len(times),
        live_requests=len(live_times),
    )
    if level is None or metric.candidate is None:
        return metric
    limit = limits.max_ttft_p95 if "ttft" in name else limits.max_p95
    if limit is not None and metric.candidate > limit:
        return _worse(metric, f"{name} {metric.candidate:.3g} s, limit {limit:g} s")
    if metric.live is None or len(live_times) < limits.min_requests or name not in _TIMES:
        return metric
    allowed = max(metric.live * (1 + limits.p95_margin), metric.live + limits.min_difference)
    half_margin = (metric.live + allowed) / 2
    if metric.candidate <= allowed or any((p95(third) or 0.0) <= half_margin for third in thirds(times)):
        return metric
    joint = p95([*times, *live_times]) or 0.0
    above, live_above = (sum(value > joint for value in values) for values in (times, live_times))
    tail = fisher_exact(above, len(times), live_above, len(live_times))
    metric.p_value = min(1.0, 2 * min(tail, mann_whitney(times, live_times)))
    if metric.p_value < level:
        return _worse(metric, f"{name} {metric.candidate:.3g} s, live slot {metric.live:.3g} s")
    return metric


def _agreement(equal: int, count: int, limits: Limits, level: float | None) -> Metric:
    """Test the share of mirrored greedy responses that equal the live slot's, if the operator has set a limit."""
    metric = Metric(name="agreement", candidate=equal / count if count else None, candidate_requests=count)
    limit = limits.min_agreement
    if level is None or limit is None or metric.candidate is None or metric.candidate >= limit:
        return metric
    metric.p_value = binomial(equal, count, limit)
    if metric.p_value < level:
        return _worse(
            metric, f"{metric.candidate:.1%} of its mirrored responses equal the live slot's, limit {limit:.1%}"
        )
    return metric


def _keep_p_value(metric: Metric, earlier: list[Metric]) -> Metric:
    """Give a metric that was not tested at this look the p-value of its last test."""
    if metric.p_value is None:
        metric.p_value = next((one.p_value for one in earlier if one.name == metric.name), None)
    return metric


def _worse(metric: Metric, why: str) -> Metric:
    metric.worse, metric.why = True, why
    return metric
