"""Comparison of a candidate's responses with the live slot's.

A candidate is worse if two things hold: a figure that an operator watches (the share of errors, the 95th percentile of
times) differs by more than a margin, and the difference is significant (`errors.py`, `times.py` with `blocks.py`).

A rollout looks repeatedly, and every look could raise a false alarm: `AlphaSpending` divides the level among them.
Errors are looked at as responses come, times as the seconds pass which they span.

No client decides: none has more than a share of the evidence (`evidence.py`), and what is found must hold without the
one that contributes most to it.

Responses from before the candidate has warmed up count for errors alone: the first ones of any version are slow.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from math import inf
from typing import NamedTuple

from deploy.analysis.blocks import MIN_SPAN, compare_apart, compare_paired
from deploy.analysis.errors import compare_errors
from deploy.analysis.evidence import Client, Disturbances, Evidence, is_many
from deploy.analysis.group import Failures, Group
from deploy.analysis.samples import Sample
from deploy.analysis.statistics import AlphaSpending, binomial
from deploy.analysis.times import Test, compare_times
from deploy.analysis.verdict import TIMES, Metric, MetricName
from deploy.display import count
from deploy.policy import Limits

__all__ = ["Comparison", "measure"]

_EARLIER_ERRORS = 5  # errors are tested from a fifth of the responses that times need
_ERRORS: tuple[MetricName, ...] = ("errors", "answer errors")
_COMPARED: tuple[MetricName, ...] = ("p95", "ttft p95")  # with the live slot's
_AGREEMENT: MetricName = "agreement"
_OF_ONE_CLIENT = 4  # times min_requests: how many responses of one client count in any case
_GROWTH, _PAUSE = 0.05, 1.0  # share of the responses, and seconds, by which they grow between two looks
_LIVE: dict[MetricName, MetricName] = {name: "ttft p95" if "ttft" in name else "p95" for name in TIMES}


class _Sides(NamedTuple):
    candidate: Group
    live: Group
    before: Group


class _Due(NamedTuple):
    """What is due for a metric: a test at this level, if any, and the comparison with the operator's absolute limit."""

    level: float | None
    is_limit_due: bool = False


class Comparison:
    """The responses of one window, which grow, and the metrics of the last look.

    `windows`: the number of windows of the rollout; they share the false alarms equally, and so do the metrics of each.
    `times_from`: when the candidate has warmed up to its share of the requests, CLOCK_MONOTONIC seconds.
    `is_paired`: whether the candidate's times are compared with the live slot's of the same moments, else with those
    from before the window; `before_until` is when those end that can be compared, CLOCK_MONOTONIC seconds.
    `is_random`: whether the live slot answers in the window too, and chance decides which requests.
    `disturbances`: when pinned requests were answered.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        windows: int,
        times_from: float = 0.0,
        is_paired: bool = True,
        before_until: float = float("inf"),
        is_random: bool = True,
        disturbances: Disturbances | None = None,
    ) -> None:
        self.limits = limits
        of_one = _OF_ONE_CLIENT * limits.min_requests
        self.candidate, self.live = (
            Evidence(times_from=times_from, disturbances=disturbances, least=of_one) for _ in range(2)
        )
        self.before = Evidence(times_until=before_until, least=of_one)
        """The live slot's responses from before the window."""
        self.metrics: list[Metric] = []
        self._is_paired, self._is_random = is_paired, is_random
        self._test: Test = compare_paired if is_paired else partial(compare_apart, margin=limits.p95_margin)
        tested = 2 if limits.min_agreement is None else 3  # the two of errors, and of times, rise and fall together
        alpha, least = limits.false_alarms / windows / tested, limits.min_requests
        self._spending = {name: AlphaSpending(max(1, least // _EARLIER_ERRORS), alpha) for name in _ERRORS}
        self._spending |= {name: AlphaSpending(MIN_SPAN, alpha) for name in _COMPARED}
        self._spending[_AGREEMENT] = AlphaSpending(least, alpha)
        self._limits_due = {name: AlphaSpending(least, alpha) for name in TIMES}
        self._looked_at = 0, -inf  # the number of the candidate's responses at the last look, and the newest of them

    def look(self, *, last: bool = False, include_times: bool = True) -> str | None:
        """Test the metrics whose look is due; returns why the candidate is worse, or None.

        `include_times`: whether the times span enough seconds for the absolute limits.
        """
        if not last and not self._has_grown():
            return None
        self._looked_at = self.candidate.count, self.candidate.newest
        client = self.candidate.client
        sides = self._sides(client)
        found = []
        for name in (*_errors(sides.candidate), *TIMES, _AGREEMENT):
            due = self._due(name, sides.candidate, last=last, include_times=include_times)
            metric = self._metric(name, sides, due)
            if metric.worse and self._is_of_one_client(metric, due, client):
                metric.mark_of_one_client()
            found.append(metric)
        self.metrics = [_keep_evidence(metric, self.metrics) for metric in found if metric.candidate_requests]
        return next((metric.why for metric in found if metric.worse), None)

    @property
    def mirrored(self) -> list[Sample]:
        """The candidate's responses to mirrored requests."""
        return self.candidate.group(self.candidate.client).mirrored

    @property
    def has_enough_requests(self) -> bool:
        """Whether at least one metric had the responses that a test needs."""
        least = self.limits.min_requests
        return any(
            metric.candidate_requests >= (max(1, least // _EARLIER_ERRORS) if metric.name in _ERRORS else least)
            for metric in self.metrics
        )

    def __str__(self) -> str:
        parts = [f"{count(self.candidate.count, 'response')}, {self.candidate.failed} failed"]
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

    def _has_grown(self) -> bool:
        """Return whether there are so many more responses, or ones so much later, that a look is worth its time."""
        count, newest = self._looked_at
        return self.candidate.count >= count * (1 + _GROWTH) + 1e-9 or self.candidate.newest >= newest + _PAUSE

    def _sides(self, client: Client, *, without: Hashable = None) -> _Sides:
        sides = (self.candidate, self.live, self.before)
        return _Sides(*(side.group(client, without=without) for side in sides))

    def _due(self, name: MetricName, candidate: Group, *, last: bool, include_times: bool) -> _Due:
        if name in _ERRORS:
            count = self.candidate.count if name == "errors" else self.candidate.of_model
            return _Due(self._spending[name].next_level(count, last=last))
        if name == _AGREEMENT:
            greedy = sum(sample.agrees is not None for sample in candidate.mirrored)
            return _Due(self._spending[name].next_level(greedy, last=last))
        times, level, is_limit_due = candidate.times[name], None, False
        if include_times or name not in _COMPARED:
            is_limit_due = self._limits_due[name].next_level(len(times), last=last) is not None
        if name in _COMPARED and len(times) >= self.limits.min_requests:
            level = self._spending[name].next_level(times.span, last=last)
        return _Due(level, is_limit_due)

    def _metric(self, name: MetricName, sides: _Sides, due: _Due) -> Metric:
        if name in _ERRORS:
            candidate, live, before = (_failures(side, name) for side in sides)
            return compare_errors(name, candidate, live, before, self.limits, due.level)
        if name == _AGREEMENT:
            return self._agreement(sides.candidate, due.level)
        reference = sides.live if self._is_paired else sides.before
        return compare_times(
            name,
            sides.candidate.times[name],
            reference.times[_LIVE[name]],
            self.limits,
            is_limit_due=due.is_limit_due,
            test=self._test,
            level=due.level,
        )

    def _is_of_one_client(self, metric: Metric, due: _Due, client: Client) -> bool:
        """Return whether the candidate is no worse without the client that contributes most to the finding.

        Not of errors in a canary: chance decides which requests are the candidate's.
        """
        if metric.name in _ERRORS and self._is_random and self.live.count:
            return False
        bad = self.candidate.clients(client, _is_bad(metric))
        all_of_it = self.candidate.clients(client, lambda sample: sample.is_answer or metric.name == "errors")
        if not bad or not is_many(all_of_it):
            return False
        sides = self._sides(client, without=max(bad, key=lambda one: bad[one]))
        return not self._metric(metric.name, sides, due).worse

    def _agreement(self, candidate: Group, level: float | None) -> Metric:
        """Test the share of mirrored greedy responses that equal the live slot's, if the operator has set a limit."""
        greedy = [sample.agrees for sample in candidate.mirrored if sample.agrees is not None]
        equal, count, limit = sum(greedy), len(greedy), self.limits.min_agreement
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
    limits, none = Limits(), Failures()
    metrics = [
        compare_errors(name, _failures(candidate, name), _failures(live, name), none, limits, None)
        for name in _errors(candidate)
    ]
    metrics += [compare_times(name, candidate.times[name], live.times[_LIVE[name]], limits) for name in TIMES]
    return [metric for metric in metrics if metric.candidate_requests]


def _errors(candidate: Group) -> tuple[MetricName, ...]:
    """Return the metrics of errors: the model's responses have one of their own if there are others."""
    return _ERRORS if candidate.of_model.count < candidate.all.count else _ERRORS[:1]


def _failures(side: Group, name: MetricName) -> Failures:
    """Return the failures of all responses, or those of the model's.

    A version whose chats fail must not be hidden by any number of cheap requests that do not.
    """
    return side.all if name == "errors" else side.of_model


def _is_bad(metric: Metric) -> Callable[[Sample], bool]:
    """Return which responses contribute to what a metric has found."""
    if metric.name in _ERRORS:
        return lambda sample: sample.is_error
    if metric.name == _AGREEMENT:
        return lambda sample: sample.agrees is False
    usual = metric.live or 0.0
    if "ttft" in metric.name:
        return lambda sample: sample.first is not None and sample.first > usual
    return lambda sample: sample.is_answer and sample.seconds > usual


def _keep_evidence(metric: Metric, earlier: list[Metric]) -> Metric:
    """Give a metric that was not tested at this look the evidence of its last test."""
    last = next((one for one in earlier if one.name == metric.name), None)
    if last and metric.p_value is None:
        metric.p_value = last.p_value
    if last and not metric.blocks:
        metric.blocks, metric.blocks_worse = last.blocks, last.blocks_worse
    return metric
