"""The comparison of a candidate's responses with the live slot's: errors, times in blocks, limits, levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deploy.analysis.blocks import compare_apart, compare_paired
from deploy.analysis.comparison import Comparison
from deploy.analysis.group import Group, Times
from deploy.analysis.samples import Sample
from deploy.analysis.statistics import AlphaSpending, fisher_exact, p95, student
from deploy.policy import Limits


def series(seconds: Callable[[float], float], begin: float = 0.0, end: float = 60.0, rate: float = 8.0) -> Times:
    """Return times at a steady rate, each a function of the moment."""
    group = Group()
    count = int((end - begin) * rate)
    group.add(
        sample(seconds(begin + number / rate) * (1 + number % 7 / 20), first=None, at=begin + number / rate)
        for number in range(count)
    )
    return group.times["p95"]


def test_one_pause_is_not_a_slower_version() -> None:
    """Times five times as long within 5 of 60 s are not significant, times 1.3 times as long in all of them are.

    Taken for independent, the former would be: the 40 slowest of 960 are all the candidate's.
    """
    usual = series(lambda at: 1.0)
    pause = compare_paired(series(lambda at: 5.0 if 20 <= at < 25 else 1.0), usual)
    steady = compare_paired(series(lambda at: 1.3), usual)
    assert pause
    assert steady
    assert pause.p_value > 0.01
    assert steady.p_value < 1e-6
    assert steady.blocks_slower == steady.blocks == 47


def test_what_slows_both_sides_is_no_difference() -> None:
    """Phases in which both sides take ten times as long do not count, however many responses each has in them."""

    def weather(at: float) -> float:
        return 10.0 if at % 20 < 7 else 1.0

    more_in_bad_weather = Times()
    more_in_bad_weather.add([one for one in series(weather, rate=16).all if one.seconds > 5 or one.at % 1 < 0.1])
    found = compare_paired(more_in_bad_weather, series(weather))
    assert (p95([one.seconds for one in more_in_bad_weather.all]) or 0.0) > 10
    assert found
    assert found.p_value > 0.1
    found = compare_paired(series(lambda at: 1.5 * weather(at)), series(weather))
    assert found
    assert found.p_value < 1e-6


def test_times_of_ten_seconds_are_compared_at_the_earliest() -> None:
    """Before, a burst of other work may cover all of them."""
    assert compare_paired(series(lambda at: 9.0, end=9.9), series(lambda at: 1.0, end=9.9)) is None
    assert compare_paired(series(lambda at: 9.0, end=10.4), series(lambda at: 1.0, end=10.4)) is not None
    assert compare_apart(series(lambda at: 9.0, 100, 109.9), series(lambda at: 1.0), 0.2) is None


def test_the_bake_is_compared_with_all_that_was_before() -> None:
    """A bake is slower if each third of it is slower than the slowest such period before.

    With little before it, which may not have met all that slows the machine down, it must be by five times the margin.
    """

    def before(at: float) -> float:
        return 2.0 if 300 <= at < 320 else 1.0

    def holds(factor: float, long: bool = True) -> bool:
        live = series(before, 0, 400) if long else series(lambda at: 1.0, 380, 400)
        found = compare_apart(series(lambda at: factor, 400, 418), live, 0.3)
        assert found
        return found.holds and found.p_value < 0.001

    assert not holds(1.9)
    assert holds(2.1)
    assert not holds(2.4, long=False)
    assert holds(2.6, long=False)
    assert compare_apart(series(lambda at: 9.0, 400, 430), series(before, 380, 400), 0.3) is None


def test_other_kinds_of_requests_are_no_slower_version() -> None:
    """In the bake twice as many responses are streamed, which take longer: the times of each kind are as before."""

    def mixed(begin: float, end: float, every: int) -> Times:
        count = int((end - begin) * 8)
        group = Group()
        for number in range(count):
            streamed = number % every == 0
            seconds = (5.0 if streamed else 1.0) * (1 + number % 7 / 20)
            group.add([sample(seconds, first=0.1 if streamed else None, at=begin + number / 8)])
        return group.times["p95"]

    before, bake = mixed(0, 400, 50), mixed(400, 420, 5)
    assert (bake.p95 or 0.0) > 3 * (before.p95 or 0.0)
    found = compare_apart(bake, before, 0.3)
    assert found
    assert not found.holds


def test_times_count_after_the_warm_up() -> None:
    """Times of responses before the warm-up do not count, to clients or mirrored; errors count at once."""
    limits = Limits(max_p95=2.0)
    for kind in (1, 2):
        for warm_from, is_worse in ((2.0, False), (0.0, True)):
            comparison = Comparison(limits, windows=1, times_from=warm_from)
            comparison.live.add(sample() for _ in range(500))
            comparison.candidate.add(sample(seconds=3, at=0.01 * number, kind=kind) for number in range(200))
            assert bool(comparison.look()) is is_worse
    comparison = Comparison(limits, windows=1, times_from=2.0)
    comparison.live.add(sample(at=number / 100) for number in range(500))
    comparison.candidate.add(sample(status=500, at=number / 10) for number in range(40))
    assert "failed" in (comparison.look() or "")


def test_errors_of_both_slots_are_not_counted_against_the_candidate() -> None:
    """If 10 % of both slots' requests fail, the candidate is not worse, though none failed before the window."""
    comparison = Comparison(Limits(), windows=1)
    comparison.before.add(sample(at=-number) for number in range(1000))
    for side in (comparison.candidate, comparison.live):
        side.add(sample(status=500 if number % 10 == 0 else 200, at=number) for number in range(200))
    assert comparison.look() is None
    comparison.candidate.add(sample(status=500, at=number) for number in range(40))
    assert "failed" in (comparison.look(last=True) or "")


def test_errors_are_tested_against_the_time_before_the_window_too() -> None:
    """5 failures of 100 are not significant against 0 of 60, and significant against 0 of 2000 before the window."""
    expected = "5.0% of its 100 requests failed, live slot 0.0%, at 5 different times"
    for history, result in ((0, None), (2000, expected)):
        comparison = Comparison(Limits(), windows=1)
        comparison.before.add(sample(at=-number) for number in range(history))
        comparison.live.add(sample(at=number) for number in range(60))
        comparison.candidate.add(sample(status=500 if number % 20 == 0 else 200, at=number) for number in range(100))
        assert comparison.look() == result


@pytest.mark.parametrize(("status", "seconds"), [(500, 0.24), (429, 4.9)])
def test_failures_of_one_moment_count_once(status: int, seconds: float) -> None:
    """20 failures within 0.25 s, or within 5 s of an overloaded server, are one incident; in 100 s they are twenty."""
    for length, is_worse in ((seconds, False), (100.0, True)):
        comparison = Comparison(Limits(), windows=1)
        comparison.live.add(sample(at=number / 10) for number in range(1000))
        comparison.candidate.add(sample(at=number / 10) for number in range(200))
        comparison.candidate.add(sample(status=status, at=5 + length * number / 20) for number in range(20))
        assert bool(comparison.look()) is is_worse
    [errors] = [metric for metric in comparison.metrics if metric.name == "errors"]
    assert errors.blocks_worse == 20


def test_a_version_that_fails_every_request_is_found_within_seconds() -> None:
    """With 2 responses in a second it is after five seconds, at the first look; the live slot had 18 in a second."""
    comparison = Comparison(Limits(), windows=4)
    for second in range(10):
        comparison.live.add(sample(at=second + number / 18) for number in range(18))
        comparison.candidate.add(sample(status=500, at=second + number / 2) for number in range(2))
        if comparison.look():
            break
    assert second == 4


def test_failing_chats_are_not_hidden_by_other_requests() -> None:
    """5 % of the chat requests fail, which are 0.25 % of all requests: far below the margin for errors."""
    comparison = Comparison(Limits(), windows=1)
    for side in (comparison.candidate, comparison.live):
        side.add(sample(kind=0, at=number / 100) for number in range(7600))
    comparison.live.add(sample(at=number / 5) for number in range(400))
    comparison.candidate.add(sample(status=200 if number % 20 else 500, at=number / 5) for number in range(400))
    assert comparison.look() == "5.0% of its 400 chat requests failed, live slot 0.0%, at 20 different times"


def test_a_verdict_states_its_evidence() -> None:
    """The metric has the numbers of blocks and of requests on which it rests."""
    comparison = Comparison(Limits(), windows=1)
    comparison.live.add(sample(1 + number % 7 / 20, at=number / 8) for number in range(480))
    comparison.candidate.add(sample(2 + number % 7 / 20, at=number / 8) for number in range(480))
    why = comparison.look()
    assert why == "p95 2.3 s, live slot 1.3 s, slower in 47 of 47 blocks of time"
    [metric] = [metric for metric in comparison.metrics if metric.name == "p95"]
    assert (metric.blocks, metric.blocks_worse, metric.candidate_requests, metric.live_requests) == (47, 47, 480, 480)
    assert metric.p_value is not None
    assert metric.p_value < 1e-6


def test_too_few_responses_are_not_tested() -> None:
    """Below the minimum of responses no time is tested, however long."""
    comparison = Comparison(Limits(min_requests=50), windows=1)
    comparison.live.add(sample(at=number / 20) for number in range(1200))
    comparison.candidate.add(sample(seconds=9, at=number) for number in range(49))
    assert comparison.look(last=True) is None
    comparison.candidate.add([sample(seconds=9, at=49)])
    assert "p95" in (comparison.look(last=True) or "")


@pytest.mark.parametrize(
    ("limits", "bad"),
    [
        (Limits(max_error_rate=0.02), {"status": 500}),
        (Limits(max_p95=2.0), {"seconds": 3.0}),
        (Limits(max_ttft_p95=0.5), {"first": 0.7}),
    ],
)
def test_absolute_limits(limits: Limits, bad: dict[str, Any]) -> None:
    """A candidate beyond an absolute limit is worse, even if the live slot is as bad."""
    comparison = Comparison(limits, windows=1)
    for side in (comparison.candidate, comparison.live):
        side.add(sample(**(bad if number % 8 == 0 else {})) for number in range(200))
    assert ", limit " in (comparison.look() or "")


def test_agreement_of_mirrored_responses() -> None:
    """With `min_agreement`, too few equal mirrored responses are worse; without it, all of them may differ."""
    mirrored = [sample(kind=3 if number % 2 else 4) for number in range(100)]
    for limits, expected in ((Limits(), None), (Limits(min_agreement=0.9), "of its mirrored responses")):
        comparison = Comparison(limits, windows=1)
        comparison.candidate.add(mirrored)
        why = comparison.look()
        assert (why is None) if expected is None else expected in (why or "")


def test_fisher_exact() -> None:
    """The p-value of Fisher's tea tasting, three of four cups right, is 17/70."""
    assert fisher_exact(3, 4, 1, 4) == pytest.approx(17 / 70)


def test_student() -> None:
    """2.132 is the 95 % quantile for 4 degrees of freedom, 1.645 that of the normal distribution."""
    assert student(2.1318, 4) == pytest.approx(0.05, abs=1e-4)
    assert student(1.6449, float("inf")) == pytest.approx(0.05, abs=1e-4)


def test_levels_of_all_looks_add_up_to_alpha() -> None:
    """A quarter of alpha is spent by looks as responses come, the rest by the last one; one is due after 30 % more."""
    spending = AlphaSpending(first=10, alpha=0.02)
    assert spending.next_level(9) is None
    assert spending.next_level(10) == pytest.approx(0.005 / 2)
    assert spending.next_level(12) is None
    levels = [level for count in range(13, 100_000) if (level := spending.next_level(count))]
    assert levels[0] == pytest.approx(0.005 / 6)
    assert 0.002 < sum(levels) < 0.0025
    assert spending.next_level(10, last=True) == 0.015


def test_p95_is_a_measured_value() -> None:
    """The 95th percentile is the smallest value that 95 % do not exceed."""
    assert p95(range(1, 101)) == 96
    assert p95([5.0]) == 5.0
    assert p95([]) is None


def sample(
    seconds: float = 1.0, first: float | None = 0.1, status: float = 200, kind: int = 1, at: float = 0.0
) -> Sample:
    """Return the sample of one response."""
    return Sample(at, seconds, first, int(status), kind)
