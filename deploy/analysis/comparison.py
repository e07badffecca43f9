"""Comparison of a candidate's responses with the live slot's.

A candidate is worse if two things hold: a figure that an operator watches (the share of errors, the 95th percentile of
times) differs by more than a margin, and the difference is significant (`errors.py`, `times.py` with `blocks.py`).

A rollout looks repeatedly, and every look could raise a false alarm: `AlphaSpending` divides the level among them.
Errors are looked at as responses come, times as the seconds pass which they span.

Responses from before the candidate has warmed up count for errors alone: the first ones of any version are slow.
"""

from __future__ import annotations

from functools import partial

from deploy.analysis.blocks import MIN_SPAN, compare_apart, compare_paired
from deploy.analysis.errors import compare_errors
from deploy.analysis.group import Failures, Group
from deploy.analysis.statistics import AlphaSpending, binomial
from deploy.analysis.times import Test, compare_times
from deploy.analysis.verdict import TIMES, Metric, MetricName
from deploy.policy import Limits

__all__ = ["Comparison", "measure"]

_EARLIER_ERRORS = 5  # errors are tested from a fifth of the responses that times need
_ERRORS: tuple[MetricName, ...] = ("errors", "answer errors")
_COMPARED: tuple[MetricName, ...] = ("p95", "ttft p95")  # with the live slot's
_LIVE: dict[MetricName, MetricName] = {name: "ttft p95" if "ttft" in name else "p95" for name in TIMES}


class Comparison:
    """The groups of one window, which grow as responses come, and the metrics of the last look.

    `windows`: the number of windows of the rollout; they share the false alarms equally, and so do the metrics of each.
    `times_from`: when the candidate has warmed up to its share of the requests, CLOCK_MONOTONIC seconds.
    `is_paired`: whether the candidate's times are compared with the live slot's of the same moments, else with those
    from before the window; `before_until` is when those end that can be compared, CLOCK_MONOTONIC seconds.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        windows: int,
        times_from: float = 0.0,
        is_paired: bool = True,
        before_until: float = float("inf"),
    ) -> None:
        self.limits = limits
        self.candidate, self.live = Group(times_from=times_from), Group(times_from=times_from)
        self.before = Group(times_until=before_until)
        """The live slot's responses from before the window."""
        self.metrics: list[Metric] = []
        self._test: Test = compare_paired if is_paired else partial(compare_apart, margin=limits.p95_margin)
        self._reference = self.live if is_paired else self.before
        tested = 2 if limits.min_agreement is None else 3  # the two of errors, and of times, rise and fall together
        alpha, least = limits.false_alarms / windows / tested, limits.min_requests
        self._spending = {name: AlphaSpending(max(1, least // _EARLIER_ERRORS), alpha) for name in _ERRORS}
        self._spending |= {name: AlphaSpending(MIN_SPAN, alpha) for name in _COMPARED}
        self._spending["agreement"] = AlphaSpending(least, alpha)
        self._limits_due = {name: AlphaSpending(least, alpha) for name in TIMES}

    def look(self, *, last: bool = False, include_times: bool = True) -> str | None:
        """Test the metrics whose look is due; returns why the candidate is worse, or None.

        `include_times`: whether the times span enough seconds for the absolute limits.
        """
        metrics = [
            *self._errors(last=last),
            *self._times(last=last, include_times=include_times),
            self._agreement(last=last),
        ]
        self.metrics = [_keep_evidence(metric, self.metrics) for metric in metrics if metric.candidate_requests]
        return next((metric.why for metric in metrics if metric.worse), None)

    @property
    def has_enough_requests(self) -> bool:
        """Whether at least one metric had the responses that a test needs."""
        least = self.limits.min_requests
        return any(
            metric.candidate_requests >= (max(1, least // _EARLIER_ERRORS) if metric.name in _ERRORS else least)
            for metric in self.metrics
        )

    def __str__(self) -> str:
        parts = [f"{self.candidate.all.count} responses, {self.candidate.all.failed} failed"]
        parts += [
            f"{metric.name} {metric.candidate:.3g} s (live {metric.live:.3g} s)"
            for metric in self.metrics
            if metric.name in _COMPARED and metric.candidate is not None and metric.live is not None
        ]
        parts += [
            f"{metric.candidate:.0%} of {metric.candidate_requests} mirrored responses equal"
            for metric in self.metrics
            if metric.name == "agreement" and metric.candidate is not None
        ]
        return ", ".join(parts)

    def _errors(self, *, last: bool) -> list[Metric]:
        metrics = []
        for name, one, live, before in _failures(self.candidate, self.live, self.before):
            level = self._spending[name].next_level(one.count, last=last)
            metrics.append(compare_errors(name, one, live, before, self.limits, level))
        return metrics

    def _times(self, *, last: bool, include_times: bool) -> list[Metric]:
        metrics = []
        for name in TIMES:
            times, reference = self.candidate.times[name], self._reference.times[_LIVE[name]]
            level, is_limit_due = None, False
            if include_times or name not in _COMPARED:
                is_limit_due = self._limits_due[name].next_level(len(times), last=last) is not None
            if name in _COMPARED and len(times) >= self.limits.min_requests:
                level = self._spending[name].next_level(times.span, last=last)
            metrics.append(
                compare_times(
                    name, times, reference, self.limits, is_limit_due=is_limit_due, test=self._test, level=level
                )
            )
        return metrics

    def _agreement(self, *, last: bool) -> Metric:
        """Test the share of mirrored greedy responses that equal the live slot's, if the operator has set a limit."""
        greedy = [sample.agrees for sample in self.candidate.mirrored if sample.agrees is not None]
        equal, count, limit = sum(greedy), len(greedy), self.limits.min_agreement
        level = self._spending["agreement"].next_level(count, last=last)
        metric = Metric(name="agreement", candidate=equal / count if count else None, candidate_requests=count)
        if level is None or limit is None or metric.candidate is None or metric.candidate >= limit:
            return metric
        metric.p_value = binomial(equal, count, limit)
        if metric.p_value < level:
            return metric.mark_worse(
                f"{metric.candidate:.1%} of its mirrored responses equal the live slot's, limit {limit:.1%}"
            )
        return metric


def measure(candidate: Group, live: Group) -> list[Metric]:
    """Return the errors and times of both groups without a test."""
    limits = Limits()
    metrics = [compare_errors(*sides, limits, None) for sides in _failures(candidate, live, Group())]
    metrics += [compare_times(name, candidate.times[name], live.times[_LIVE[name]], limits) for name in TIMES]
    return [metric for metric in metrics if metric.candidate_requests]


def _failures(candidate: Group, live: Group, before: Group) -> list[tuple[MetricName, Failures, Failures, Failures]]:
    """Return the failures of all responses, and those of the model's where there are others.

    A version whose chats fail must not be hidden by any number of cheap requests that do not.
    """
    found: list[tuple[MetricName, Failures, Failures, Failures]] = [("errors", candidate.all, live.all, before.all)]
    if candidate.of_model.count < candidate.all.count:
        found.append(("answer errors", candidate.of_model, live.of_model, before.of_model))
    return found


def _keep_evidence(metric: Metric, earlier: list[Metric]) -> Metric:
    """Give a metric that was not tested at this look the evidence of its last test."""
    last = next((one for one in earlier if one.name == metric.name), None)
    if last and metric.p_value is None:
        metric.p_value = last.p_value
    if last and not metric.blocks:
        metric.blocks, metric.blocks_worse = last.blocks, last.blocks_worse
    return metric
