"""Is the candidate worse than the live slot? What is compared, and when a difference is no chance.

Worse takes two things: a difference beyond the margin, in what an operator looks at (the share of errors, the 95th
percentile of times), and evidence that it is no chance.

Does one of two groups of answers hold more than its share of the marked ones (failed; beyond the 95th percentile of
both together)? Fisher's exact test answers that for any sizes and any distribution. Times are skewed and of several
kinds of requests at once, so that a test which assumes a shape, or compares means, would be wrong. For times the
Mann-Whitney test is asked too: a version that is slower with every answer is told by the ranks of all of them long
before by its slowest twentieth, one that is slower with some by that twentieth alone. The smaller of the two, doubled.

A rollout looks again and again, which would make chance win in the end: half of the false alarms that are allowed are
kept for the last look of a window, and of the other half the k-th look may only spend 1 / k(k+1). Looks are taken when
a third more answers have come, not when time has passed. Answers of one second share its hiccups and are no
independent draws: these must span some seconds, and the candidate must be slower, by half the margin at least, in each
third of them too. What it answers while it warms to its share of the requests tells of errors alone: the first answers
of any version are slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, Field

from deploy.analysis.samples import Sample
from deploy.policy import Limits

__all__ = ["Comparison", "Group", "Looks", "Metric", "Name", "Verdict", "agreement", "errors", "times"]

Name = Literal["errors", "p95", "ttft p95", "mirrored p95", "mirrored ttft p95", "agreement"]

_GROWTH = 1.3  # of the candidate's answers between two looks
_THIRDS = 3
_SLOWEST = 0.95
_KEPT = 20_000  # answers of one group; older ones are forgotten
_ERRORS_EARLIER = 5  # the part of the answers that times need with which errors are looked at first
_TIMES: dict[Name, Name] = {"p95": "mirrored p95", "ttft p95": "mirrored ttft p95"}


class Metric(BaseModel):
    """One comparison: shares from 0 to 1, times in seconds; None where there was nothing to measure."""

    name: Name
    candidate: float | None = None
    live: float | None = None
    candidate_requests: int = 0
    live_requests: int = 0
    p_value: float | None = None
    """How often chance alone would show such a difference; None when it was too small to ask, or answers too few."""
    worse: bool = False
    why: str | None = None


class Verdict(BaseModel):
    """What was found in one window: a canary step, or the bake."""

    window: str
    at: str = ""
    seconds: float = 0.0
    metrics: list[Metric] = Field(default_factory=list)
    mirrored: int = 0
    """Of the candidate's answers: those to requests that the live slot answered, thrown away."""
    length_ratio: float | None = None
    """The length of those answers as a part of the live slot's, in the median."""
    outcome: Literal["not worse", "worse", "too few requests"] = "too few requests"
    reason: str | None = None


@dataclass
class Group:
    """The answers of one side in one window."""

    samples: list[Sample] = field(default_factory=list)
    times_from: float = 0.0
    """CLOCK_MONOTONIC; an answer that ended before it tells nothing of times."""

    @property
    def errors(self) -> int:
        """How many clients were not served."""
        return sum(one.is_error for one in self.samples)

    def part(self, *, mirrored: bool) -> Group:
        """Those that clients got, or the mirrored ones, which nobody did."""
        return replace(self, samples=[one for one in self.samples if one.is_mirrored == mirrored])

    def times(self, name: Name) -> list[float]:
        """Seconds of the model's answers, in the order in which they ended."""
        answers = [one for one in self.samples if one.is_answer and one.status == 200 and one.at >= self.times_from]
        answers.sort(key=lambda one: one.at)
        if "ttft" in name:
            return [one.first for one in answers if one.first is not None]
        return [one.seconds for one in answers]


@dataclass
class Looks:
    """When to look at one metric, and how much of the allowed false alarms that look may spend."""

    first: int
    """Answers of the candidate at the first look."""
    allowed: float
    """The share of equal versions that may be called worse by all looks together."""
    _taken: int = 0

    def take(self, answers: int, *, last: bool = False) -> float | None:
        """Return the level of the look that is due with so many answers; None when none is."""
        due = self.first * _GROWTH**self._taken
        if answers < (self.first if last else due):
            return None
        if last:
            return self.allowed / 2
        self._taken += 1
        return self.allowed / 2 / (self._taken * (self._taken + 1))


class Comparison:
    """One window's groups, fed as answers come, and what was found in them at each look.

    `windows`: how many the rollout has; each may spend its part of the false alarms, and each metric a part of that.
    `times_from`: when the candidate has warmed to its share of the requests, CLOCK_MONOTONIC.
    """

    def __init__(self, limits: Limits, *, windows: int, times_from: float = 0.0) -> None:
        self.limits = limits
        self.candidate, self.live, self.before = Group(times_from=times_from), Group(), Group()
        self.metrics: list[Metric] = []
        asked = 3 if limits.min_agreement is None else 4
        share, least = limits.false_alarms / windows / asked, limits.min_requests
        self._looks: dict[Name, Looks] = {
            "errors": Looks(max(1, least // _ERRORS_EARLIER), share),
            "p95": Looks(least, share),
            "ttft p95": Looks(least, share),
            "mirrored p95": Looks(least, share),
            "mirrored ttft p95": Looks(least, share),
            "agreement": Looks(least, share),
        }

    def look(self, *, last: bool = False, at_times: bool = True) -> str | None:
        """Compare what is there, where a look is due; returns why the candidate is worse, None when it is not.

        `at_times`: whether the times span enough seconds to be compared.
        """
        ours, theirs, limits = self.candidate, self.live, self.limits
        for group in (ours, theirs, self.before):
            del group.samples[:-_KEPT]
        level = self._looks["errors"].take(len(ours.samples), last=last)
        metrics = [errors(ours, theirs, self.before, limits, level)]
        served, copies = ours.part(mirrored=False), ours.part(mirrored=True)
        for name, mirrored in _TIMES.items():
            level = self._looks[name].take(len(served.times(name)), last=last) if at_times else None
            metrics.append(times(name, served, theirs, limits, level))
            level = self._looks[mirrored].take(len(copies.times(name)), last=last)
            metrics.append(times(mirrored, copies, theirs, limits, level))
        greedy = [one.agrees for one in ours.samples if one.agrees is not None]
        level = self._looks["agreement"].take(len(greedy), last=last)
        metrics.append(agreement(sum(greedy), len(greedy), limits, level))
        self.metrics = [_with_p_of(one, self.metrics) for one in metrics if one.candidate_requests]
        return next((one.why for one in metrics if one.worse), None)

    @property
    def suffices(self) -> bool:
        """Whether there was enough of anything to conclude something."""
        return any(one.candidate_requests >= self._looks[one.name].first for one in self.metrics)

    def __str__(self) -> str:
        words = [f"{len(self.candidate.samples)} answers, {self.candidate.errors} failed"]
        words += [
            f"{one.name} {one.candidate:.3g} s beside {one.live:.3g} s"
            for one in self.metrics
            if one.name in _TIMES and one.candidate is not None and one.live is not None
        ]
        words += [
            f"{one.candidate:.0%} of {one.candidate_requests} mirrored ones equal"
            for one in self.metrics
            if one.name == "agreement" and one.candidate is not None
        ]
        return ", ".join(words)


def errors(candidate: Group, live: Group, before: Group, limits: Limits, level: float | None) -> Metric:
    """Compare the shares of requests that were not served.

    Chance is judged beside what the live slot did in the window and before it, for an error is no matter of the
    machine's mood; the margin beside the window alone, so that what befalls both sides is nobody's fault.
    """
    failed, count = candidate.errors, len(candidate.samples)
    share = failed / count if count else None
    beside = live.errors / len(live.samples) if live.samples else None
    metric = Metric(
        name="errors", candidate=share, live=beside, candidate_requests=count, live_requests=len(live.samples)
    )
    if level is None or share is None:
        return metric
    if limits.max_error_rate is not None and share > limits.max_error_rate and failed > 1:
        return _worse(metric, f"{share:.1%} of its requests failed, the limit is {limits.max_error_rate:.1%}")
    reference = [*before.samples, *live.samples]
    if not reference or share - (beside or 0.0) <= limits.error_margin:
        return metric
    metric.p_value = chance(failed, count, sum(one.is_error for one in reference), len(reference))
    if metric.p_value < level:
        beside_text = f"{beside:.1%} of the live slot's" if beside is not None else "those of the live slot before"
        return _worse(metric, f"{share:.1%} of its {count} requests failed, {beside_text}")
    return metric


def times(name: Name, candidate: Group, live: Group, limits: Limits, level: float | None) -> Metric:
    """Compare the 95th percentiles of times.

    Those of mirrored answers are held to the operator's own limits alone: each of them ran beside the live slot's work
    on the same device, and most of the live ones beside none.
    """
    ours, theirs = candidate.times(name), live.times(name)
    metric = Metric(
        name=name,
        candidate=percentile(ours),
        live=percentile(theirs),
        candidate_requests=len(ours),
        live_requests=len(theirs),
    )
    if level is None or metric.candidate is None:
        return metric
    limit = limits.max_ttft_p95 if "ttft" in name else limits.max_p95
    if limit is not None and metric.candidate > limit:
        return _worse(metric, f"its {name} is {metric.candidate:.3g} s, the limit is {limit:g} s")
    if metric.live is None or len(theirs) < limits.min_requests or name not in _TIMES:
        return metric
    most = max(metric.live * (1 + limits.p95_margin), metric.live + limits.min_difference)
    steady = (metric.live + most) / 2
    if metric.candidate <= most or any((percentile(third) or 0) <= steady for third in _thirds(ours)):
        return metric
    line = percentile([*ours, *theirs]) or 0.0
    above = [sum(one > line for one in group) for group in (ours, theirs)]
    metric.p_value = min(1.0, 2 * min(chance(above[0], len(ours), above[1], len(theirs)), ranks(ours, theirs)))
    if metric.p_value < level:
        return _worse(metric, f"its {name} is {metric.candidate:.3g} s, the live slot's {metric.live:.3g} s")
    return metric


def agreement(equal: int, asked: int, limits: Limits, level: float | None) -> Metric:
    """Judge how many of the mirrored greedy answers were the same, where the operator asks for that."""
    metric = Metric(name="agreement", candidate=equal / asked if asked else None, candidate_requests=asked)
    least = limits.min_agreement
    if level is None or least is None or metric.candidate is None or metric.candidate >= least:
        return metric
    from scipy.stats import binom

    metric.p_value = float(binom.cdf(equal, asked, least))
    if metric.p_value < level:
        return _worse(metric, f"{metric.candidate:.1%} of its mirrored answers equal the live slot's, not {least:.1%}")
    return metric


def chance(marked: int, count: int, marked_live: int, count_live: int) -> float:
    """Fisher's exact test, one-sided: how likely so many of the marked fall to a group of `count` by chance."""
    from scipy.stats import hypergeom  # half a second to import, and only who judges needs it

    return float(hypergeom.sf(marked - 1, count + count_live, marked + marked_live, count))


def ranks(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The Mann-Whitney test, one-sided: how likely ours are so much longer by chance."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(ours, theirs, alternative="greater").pvalue)


def percentile(values: Sequence[float]) -> float | None:
    """The 95th percentile: the smallest value that 95 % do not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(_SLOWEST * len(ordered)))]


def _thirds(values: Sequence[float]) -> list[Sequence[float]]:
    cuts = [len(values) * part // _THIRDS for part in range(_THIRDS + 1)]
    return [values[begin:end] for begin, end in pairwise(cuts)]


def _with_p_of(metric: Metric, before: list[Metric]) -> Metric:
    """Let a metric that was not looked at now show what the last look found."""
    if metric.p_value is None:
        metric.p_value = next((one.p_value for one in before if one.name == metric.name), None)
    return metric


def _worse(metric: Metric, why: str) -> Metric:
    metric.worse, metric.why = True, why
    return metric
