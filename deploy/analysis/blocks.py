"""Comparison of times in blocks of time.

Responses of the same moments are not independent: while another process has the processor, all of them are slow. A test
that takes each for an independent draw finds a difference with any confidence wherever there was such a phase. So the
unit of evidence is a block of seconds, and not a response.

In a canary both sides serve at the same time, and are compared within each block (`compare_paired`). The difference
varies from block to block, since each side's processes have interruptions of their own. It counts if it is more than
chance explains within the blocks, and more than this variation explains.

In the bake the sides served at different times, so that whatever slowed the machine down in one of them looks like a
difference. There the blocks of the candidate are compared with those of the live slot before (`compare_apart`).

Streamed responses and others are compared among themselves: the mixture may differ from block to block.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from deploy.analysis.group import Timed, Times, seconds_of
from deploy.analysis.statistics import p95, student

__all__ = ["MIN_SPAN", "Evidence", "compare_apart", "compare_paired"]

_MIN_BLOCK = 1.25  # seconds
_MIN_BLOCKS, _MAX_BLOCKS = 8, 48
MIN_SPAN = _MIN_BLOCK * _MIN_BLOCKS
"""Seconds of both sides' responses without which nothing is compared."""
_MAX_SCORE = 1.5  # standard deviations; bounds what one block contributes
_LAGS = 2  # blocks after one that may meet the same interruption
_TAIL = 0.05  # share of the responses that are the slow ones

_THIRDS = 3
_LONG_THIRD = 5.0  # seconds; as long as a burst of other work
_LONG_HISTORY = 9  # blocks of the live slot
_CAUTION = 5  # times the margin, where a third is shorter or the history is
_MIN_RESPONSES = 5  # in a block whose 95th percentile is used


@dataclass(frozen=True)
class Evidence:
    """How sure it is that the candidate is slower."""

    p_value: float
    blocks: int
    blocks_slower: int
    holds: bool
    """Whether it was slower in most of the blocks."""


def compare_paired(candidate: Times, reference: Times, margin: float) -> Evidence | None:  # noqa: ARG001
    """Compare responses of the same period, each in order; None if it is too short.

    Two scores for each block: how much greater the candidate's ranks are (Mann-Whitney), and how many more of the
    slowest twentieth are its own (Fisher). The p-value is the smaller one of the two, doubled.
    """
    times, live = candidate.all, reference.all
    if not times or not live:
        return None
    begin, end = times[0].at, max(times[-1].at, live[-1].at)
    number = min(_MAX_BLOCKS, int((end - begin) / _MIN_BLOCK + 1e-9))
    if number < _MIN_BLOCKS:
        return None
    cuts = [begin + (end - begin) * part / number for part in range(number + 1)]
    pairs = list(zip(_split(times, cuts), _split(live, cuts), strict=True))
    found = [_paired(pairs, score) for score in (_ranks, _slowest)]
    return _better(found)


def compare_apart(candidate: Times, reference: Times, margin: float) -> Evidence | None:
    """Compare responses of two periods, each in order; None if the live slot's is the shorter one.

    The candidate's period is cut into thirds, and the live slot's into blocks of that length. The 95th percentile of
    every third must exceed the highest one of the live slot's blocks by `margin`, and the means must differ by more
    than the variation among blocks explains (Student's t-test of the logarithms). Where the live slot's period is less
    than three times as long, or a third is shorter than a burst of other work, the margin is five times as great.
    """
    length = candidate.span / _THIRDS
    if candidate.span < MIN_SPAN or reference.span < candidate.span:
        return None
    times, live, parts = candidate.all, reference.all, int(reference.span / length + 1e-9)
    usual = {kind: p95(seconds_of(one for one in live if one.is_streamed == kind)) for kind in (False, True)}
    blocks = _relative(times, [times[0].at + length * part for part in range(_THIRDS + 1)], usual)
    before = _relative(live, [live[-1].at - length * (parts - part) for part in range(parts + 1)], usual)
    if len(blocks) < _THIRDS or len(before) < _THIRDS:
        return None
    if len(before) < _LONG_HISTORY or length < _LONG_THIRD:
        margin *= _CAUTION
    slower = sum(one > max(before) * (1 + margin) for one in blocks)
    p_value = _student([math.log(one) for one in blocks], [math.log(one) for one in before])
    return Evidence(p_value, len(blocks), slower, slower == len(blocks))


def _relative(times: Sequence[Timed], cuts: Sequence[float], usual: dict[bool, float | None]) -> list[float]:
    """Return the 95th percentile of each block that has enough responses, relative to what is usual for each kind."""
    found = []
    for block in _split(times, cuts):
        values = [one.seconds / scale for one in block if (scale := usual[one.is_streamed])]
        if len(values) >= _MIN_RESPONSES:
            found.append(p95(values) or 0.0)
    return found


def _better(found: Sequence[Evidence | None]) -> Evidence | None:
    """Return the evidence of the smaller p-value, doubled because it is one of two."""
    some = [one for one in found if one]
    if not some:
        return None
    best = min(some, key=lambda one: (not one.holds, one.p_value))
    return Evidence(min(1.0, len(found) * best.p_value), best.blocks, best.blocks_slower, best.holds)


_Score = Callable[[list[float], list[float]], tuple[float, float]]


def _paired(pairs: Sequence[tuple[list[Timed], list[Timed]]], score: _Score) -> Evidence | None:
    """Test whether the scores of the blocks are greater than 0, within the blocks and between them."""
    scores, difference, variance = [], 0.0, 0.0
    for block in pairs:
        total, chance = 0.0, 0.0
        for kind in (False, True):
            values, reference = (seconds_of(one for one in side if one.is_streamed == kind) for side in block)
            if values and reference:
                one, spread = score(values, sorted(reference))
                total += one
                chance += spread
        if chance:
            scores.append(max(-_MAX_SCORE, min(_MAX_SCORE, total / math.sqrt(chance))))
            difference += total
            variance += chance
    if len(scores) < _MIN_BLOCKS:
        return None
    within = student(difference / math.sqrt(variance), math.inf)
    between = student(_ratio(fmean(scores), _error_of_mean(scores)), len(scores) - 1)
    slower = sum(one > 0 for one in scores)
    return Evidence(max(within, between), len(scores), slower, slower > len(scores) / 2)


def _error_of_mean(scores: Sequence[float]) -> float:
    """Return the standard error of the mean of a series; correlation of successive ones can only increase it."""
    mean, count = fmean(scores), len(scores)
    rest = [one - mean for one in scores]
    variance = sum(one * one for one in rest)
    correlated = variance
    for lag in range(1, _LAGS + 1):  # Newey and West's weights
        products = sum(one * other for one, other in zip(rest, rest[lag:], strict=False))
        correlated += 2 * (1 - lag / (_LAGS + 1)) * products
    return math.sqrt(max(variance, correlated) / (count - 1) / count)


def _ranks(values: list[float], reference: list[float]) -> tuple[float, float]:
    """Return the Mann-Whitney statistic less its expectation, and its variance, weighted as van Elteren's test does."""
    count, others = len(values), len(reference)
    below = sum(bisect_left(reference, value) + bisect_right(reference, value) for value in values) / 2
    return (below - count * others / 2) / (count + others + 1), count * others / 12 / (count + others + 1)


def _slowest(values: list[float], reference: list[float]) -> tuple[float, float]:
    """Return how many more of the slowest responses are among `values` than by chance, and the variance of that."""
    everything = sorted([*values, *reference])
    total = len(everything)
    threshold = everything[-max(1, round(_TAIL * total))]
    marked = total - bisect_left(everything, threshold)
    share = len(values) / total
    chance = marked * share * (1 - share) * (total - marked) / max(1, total - 1)
    return sum(value >= threshold for value in values) - marked * share, chance


def _student(values: Sequence[float], reference: Sequence[float]) -> float:
    """Return the p-value of Student's t-test with a pooled variance, one-sided."""
    freedom = len(values) + len(reference) - 2
    squares = sum((one - fmean(some)) ** 2 for some in (values, reference) for one in some)
    error = math.sqrt(squares / freedom * (1 / len(values) + 1 / len(reference)))
    return student(_ratio(fmean(values) - fmean(reference), error), freedom)


def _ratio(difference: float, error: float) -> float:
    if error:
        return difference / error
    return math.copysign(math.inf, difference) if difference else 0.0


def _split(times: Sequence[Timed], cuts: Sequence[float]) -> list[list[Timed]]:
    """Return the responses between each two cuts; those at the last cut are in the last part."""
    ends = [one.at for one in times]
    places = [bisect_left(ends, cut) for cut in cuts[:-1]] + [bisect_right(ends, cuts[-1])]
    return [list(times[begin:end]) for begin, end in pairwise(places)]
