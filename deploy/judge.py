"""Watches a candidate that has requests: its answers beside the live slot's, and the release's checks again."""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import median
from typing import Any

from deploy import analysis
from deploy.analysis import Group, Looks, Metric, Name, Verdict
from deploy.checks import ask_checks
from deploy.errors import NotReady, Worse
from deploy.journal import now
from deploy.plan import Rollout
from deploy.policy import Limits
from deploy.samples import Sample, Samples

__all__ = ["Judge"]

_MIRRORED: dict[Name, Name] = {"p95": "mirrored p95", "ttft p95": "mirrored ttft p95"}

_KEPT = 20_000  # answers of one side; older ones are forgotten
_BEFORE = 600.0  # seconds before a window in which the live slot's answers still tell how it does
_SETTLE = {"overlap": 2.0, "swap": 10.0, "weights": 2.0}
"""Seconds after a cutover that do not count: caches are cold, and after a swap everybody who waited comes at once."""
_LEAST = 5.0  # seconds that a comparison of times spans where the two sides are not asked at the same time
_ERRORS_EARLIER = 5  # the part of the answers that times need with which errors are looked at first
_CHECKED = 1.0  # seconds in which a check that was passed need not be asked again


class Judge:
    """The verdict on one window: a canary step, or the bake.

    In a canary both sides are asked at the same time, and which of them is a toss. In the bake the old slot is asked
    nothing any more: the new one is compared with what the old one did before the cutover.

    The times of mirrored answers stand in the verdict and are held to the operator's own limits, not to the live
    slot's: each of them ran beside the live slot's work on the same device, and most of the live ones beside none.
    """

    def __init__(self, rollout: Rollout, window: str) -> None:
        self._rollout = rollout
        self._limits = rollout.plan.analysis or Limits(enabled=False)
        self._began = self._checked = time.monotonic()
        self._verdict = Verdict(window=window, at=now())
        self._is_bake = window == "bake"
        self._counts_from = self._began + (_SETTLE[rollout.plan.strategy] if self._is_bake else 0.0)
        record = rollout.entry.record
        self._ours = Samples(rollout.tools.host, rollout.candidate, record.version)
        self._theirs = Samples(rollout.tools.host, rollout.old or "", record.previous or "")
        self._candidate, self._live, self._before = Group(), Group(), Group()
        share = self._limits.false_alarms / (len(rollout.plan.canary) + 1) / 4
        least = self._limits.min_requests
        self._looks: dict[Name, Looks] = {
            "errors": Looks(max(1, least // _ERRORS_EARLIER), share),
            "p95": Looks(least, share),
            "ttft p95": Looks(least, share),
            "agreement": Looks(least, share),
            **{name: Looks(least, share) for name in _MIRRORED.values()},
        }

    def look(self) -> None:
        """Compare what has come so far, ask the checks when it is time; raises Worse."""
        if self._limits.enabled:
            self._compare(last=False)
        if time.monotonic() - self._checked >= self._limits.checks_every:
            self._ask_checks()

    def conclude(self) -> None:
        """Compare once more, ask the checks once more, and write the verdict down; raises Worse."""
        if self._limits.enabled:
            self._compare(last=True)
        if time.monotonic() - self._checked >= _CHECKED:
            self._ask_checks()
        looked = [one for one in self._verdict.metrics if one.candidate_requests >= self._looks[one.name].first]
        self._end("not worse" if looked else "too few requests")

    def __str__(self) -> str:
        found = {one.name: one for one in self._verdict.metrics}
        words = [f"{len(self._candidate.samples)} answers, {self._candidate.errors} failed"]
        for name in ("p95", "ttft p95"):
            one = found.get(name)
            if one and one.candidate is not None and one.live is not None:
                words.append(f"{name} {one.candidate:.3g} s beside {one.live:.3g} s")
        if self._verdict.mirrored:
            words.append(f"{self._verdict.mirrored} of them mirrored")
        one = found.get("agreement")
        if one and one.candidate is not None:
            words.append(f"{one.candidate:.0%} of {one.candidate_requests} equal the live slot's")
        return ", ".join(words)

    def _compare(self, *, last: bool) -> None:
        self._read()
        limits, ours, theirs = self._limits, self._candidate, self._live
        spans = not self._is_bake or time.monotonic() - self._counts_from >= _LEAST
        metrics = [
            analysis.errors(ours, theirs, self._before, limits, self._level("errors", len(ours.samples), last)),
        ]
        served = Group([one for one in ours.samples if not one.is_mirrored])
        copies = Group([one for one in ours.samples if one.is_mirrored])
        for name in _MIRRORED:
            level = self._level(name, len(served.times(name)), last) if spans else None
            metrics.append(analysis.times(name, served, theirs, limits, level))
            metrics.append(self._times_alone(name, copies, last))
        greedy = [one.agrees for one in ours.samples if one.agrees is not None]
        level = self._level("agreement", len(greedy), last)
        metrics.append(analysis.agreement(sum(greedy), len(greedy), limits, level))
        self._verdict.metrics = [_keeping_p(one, self._verdict.metrics) for one in metrics if one.candidate_requests]
        ratios = [one.ratio for one in copies.samples if one.ratio is not None]
        self._verdict.mirrored = len(copies.samples)
        self._verdict.length_ratio = round(median(ratios), 3) if ratios else None
        if worse := next((one.why for one in metrics if one.worse), None):
            self._end("worse", worse)
            raise Worse(worse)

    def _times_alone(self, name: Name, copies: Group, last: bool) -> Metric:
        """Hold the times of mirrored answers to the limits, and put the live slot's beside them."""
        level = self._level(_MIRRORED[name], len(copies.times(name)), last)
        metric = analysis.times(name, copies, Group(), self._limits, level)
        theirs = self._live.times(name)
        metric.name, metric.live, metric.live_requests = _MIRRORED[name], analysis.percentile(theirs), len(theirs)
        return metric

    def _level(self, name: Name, answers: int, last: bool) -> float | None:
        return self._looks[name].take(answers, last=last)

    def _read(self) -> None:
        earliest = self._began - _BEFORE
        mirrored: list[Sample] = []
        for one in self._theirs.new():
            if one.is_mirrored:
                mirrored.append(one)
            elif one.at >= earliest:
                is_beside = (one.at < self._began) == self._is_bake
                (self._live if is_beside else self._before).samples.append(one)
        self._candidate.samples += _since(self._counts_from, [*self._ours.new(), *mirrored])
        for group in (self._candidate, self._live, self._before):
            del group.samples[:-_KEPT]

    def _ask_checks(self) -> None:
        tools = self._rollout.tools
        try:
            ask_checks(tools, tools.releases.get(self._rollout.plan.version), self._rollout.candidate)
        except NotReady as error:
            reason = f"asked again, {error}"
            self._end("worse", reason)
            raise Worse(reason) from error
        self._checked = time.monotonic()

    def _end(self, outcome: Any, reason: str | None = None) -> None:
        self._verdict.outcome, self._verdict.reason = outcome, reason
        self._verdict.seconds = round(time.monotonic() - self._began, 3)
        self._rollout.entry.record.analysis.append(self._verdict)


def _since(moment: float, samples: Iterable[Sample]) -> list[Sample]:
    return [one for one in samples if one.at >= moment]


def _keeping_p(metric: Metric, before: list[Metric]) -> Metric:
    """Let a metric that was not looked at now show what the last look found."""
    if metric.p_value is None:
        metric.p_value = next((one.p_value for one in before if one.name == metric.name), None)
    return metric
