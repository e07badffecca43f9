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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from statistics import fmean

from deploy.analysis.group import Timed, Times, seconds_of
from deploy.analysis.statistics import p95, student

__all__ = ["MIN_SPAN", "Evidence", "compare_apart", "compare_paired"]

_MIN_BLOCK = 1.25  # seconds
_MIN_BLOCKS, _MAX_BLOCKS = 8, 48
MIN_SPAN = _MIN_BLOCK * _MIN_BLOCKS
"""Seconds of both sides' responses without which nothing is compared."""
_LAGS = 2  # blocks after one that may meet the same interruption

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


def compare_paired(candidate: Times, reference: Times) -> Evidence | None:
    """Compare responses of the same period, each in order; None if it is too short.

    Two comparisons: of all ranks (the Mann-Whitney test), and of which side has the slow responses, those above the
    95th percentile of both (Fisher's exact test). The p-value is the smaller one of the two, doubled.
    """
    times, live = candidate.all, reference.all
    if not times or not live:
        return None
    begin, end = times[0].at, max(times[-1].at, live[-1].at)
    number = min(_MAX_BLOCKS, int((end - begin) / _MIN_BLOCK + 1e-9))
    if number < _MIN_BLOCKS:
        return None
    cuts = [begin + (end - begin) * part / number for part in range(number + 1)]
    limits = _p95_by_kind([*times, *live])
    ranks = _paired(_split(times, cuts), _split(live, cuts))
    slow = _paired(*(_split(_marked(side, limits), cuts) for side in (times, live)))
    found = [one for one in (ranks, slow) if one]
    if not found:
        return None
    best = min(found, key=lambda one: (not one.holds, one.p_value))
    return replace(best, p_value=min(1.0, 2 * best.p_value))


def compare_apart(candidate: Times, reference: Times, margin: float) -> Evidence | None:
    """Compare responses of two periods, each in order; None if the live slot's is the shorter one.

    The candidate's period is cut into thirds, and the live slot's into blocks of that length. The 95th percentile of
    every third must exceed the highest one of the live slot's blocks, and the means must differ by more than the
    variation among blocks explains (Student's t-test of the logarithms). Where the live slot's period is less than
    three times as long, or a third is shorter than a burst of other work, it must exceed it by five times `margin`.
    """
    length = candidate.span / _THIRDS
    if candidate.span < MIN_SPAN or reference.span < candidate.span:
        return None
    times, live, parts = candidate.all, reference.all, int(reference.span / length + 1e-9)
    usual = _p95_by_kind(live)
    blocks = _relative(times, [times[0].at + length * part for part in range(_THIRDS + 1)], usual)
    before = _relative(live, [live[-1].at - length * (parts - part) for part in range(parts + 1)], usual)
    if len(blocks) < _THIRDS or len(before) < _THIRDS:
        return None
    is_short = len(before) < _LONG_HISTORY or length < _LONG_THIRD
    limit = max(before) * (1 + _CAUTION * margin if is_short else 1)
    slower = sum(one > limit for one in blocks)
    p_value = _student([math.log(one) for one in blocks], [math.log(one) for one in before])
    return Evidence(p_value, len(blocks), slower, slower == len(blocks))


def _p95_by_kind(times: Sequence[Timed]) -> dict[bool, float | None]:
    """Return the 95th percentile of the responses that are streamed (True), and of the others."""
    return {kind: p95(seconds_of(one for one in times if one.is_streamed == kind)) for kind in (False, True)}


def _relative(times: Sequence[Timed], cuts: Sequence[float], usual: dict[bool, float | None]) -> list[float]:
    """Return the 95th percentile of each block that has enough responses, relative to what is usual for each kind."""
    found = []
    for block in _split(times, cuts):
        values = [one.seconds / scale for one in block if (scale := usual[one.is_streamed])]
        if len(values) >= _MIN_RESPONSES:
            found.append(p95(values) or 0.0)
    return found


def _marked(times: Sequence[Timed], limits: dict[bool, float | None]) -> list[Timed]:
    """Return the responses with 1 for the slow ones and 0 for the others in place of their seconds."""
    return [one._replace(seconds=float(one.seconds > (limits[one.is_streamed] or 0.0))) for one in times]


def _paired(blocks: Sequence[list[Timed]], live_blocks: Sequence[list[Timed]]) -> Evidence | None:
    """Test whether the candidate's ranks are greater; None of too few blocks.

    The statistic is van Elteren's, the weighted sum of the blocks' Mann-Whitney statistics. It has two variances: what
    chance explains within the blocks, and what the variation between them shows, which may be correlated.
    """
    differences, chances = [], []
    for block in zip(blocks, live_blocks, strict=True):
        difference = chance = 0.0
        for kind in (False, True):
            values, reference = (seconds_of(one for one in side if one.is_streamed == kind) for side in block)
            if values and reference:
                one, variance = _ranks(values, sorted(reference))
                difference += one
                chance += variance
        if chance:
            differences.append(difference)
            chances.append(chance)
    if len(differences) < _MIN_BLOCKS:
        return None
    total, variance = sum(differences), sum(chances)
    effective = variance**2 / sum(chance**2 for chance in chances)  # number of blocks, if all weighed the same
    rest = [one - chance / variance * total for one, chance in zip(differences, chances, strict=True)]
    error = math.sqrt(_variance_of_sum(rest) * effective / max(1.0, effective - 1))
    within = student(total / math.sqrt(variance), math.inf)
    between = student(_ratio(total, error), max(1.0, effective - 1))
    slower = sum(one > 0 for one in differences)
    return Evidence(max(within, between), len(differences), slower, slower > len(differences) / 2)


def _variance_of_sum(rest: Sequence[float]) -> float:
    """Return the variance of the sum of a series with the mean 0; correlation can only increase it (Newey and West)."""
    variance = sum(one * one for one in rest)
    correlated = variance
    for lag in range(1, _LAGS + 1):
        products = sum(one * other for one, other in zip(rest, rest[lag:], strict=False))
        correlated += 2 * (1 - lag / (_LAGS + 1)) * products
    return max(variance, correlated)


def _ranks(values: list[float], reference: list[float]) -> tuple[float, float]:
    """Return the Mann-Whitney statistic less its expectation, and its variance, both weighted as van Elteren does.

    `reference` is in order.
    """
    count, others = len(values), len(reference)
    total = count + others
    below = sum(bisect_left(reference, value) + bisect_right(reference, value) for value in values) / 2
    ties = sum(number**3 - number for number in Counter(chain(values, reference)).values())
    variance = count * others / 12 * (total + 1 - ties / (total * (total - 1)))
    return (below - count * others / 2) / (total + 1), variance / (total + 1) ** 2


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
