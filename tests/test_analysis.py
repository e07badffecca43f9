"""The analysis over hundreds of simulated rollouts, with response times measured at a real service."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from deploy.analysis.comparison import Comparison
from deploy.analysis.samples import Sample, Samples
from deploy.analysis.statistics import AlphaSpending, fisher_exact, mann_whitney, p95, thirds
from deploy.policy import Limits
from deploy.rollout.judge import MIN_SPAN, WARM_UP
from tests.box import Box

pytestmark = pytest.mark.model

ROLLOUTS = 200
RATE = 20.0  # responses per second, both slots together
STEP = 60.0  # seconds, the default of --step and --bake
SHARES = (0.1, 0.5)
LOOK = 1.0  # seconds between two looks

Fault = Callable[[Sample, random.Random], Sample]


@pytest.fixture(scope="module")
def traffic(stocked_live: Box) -> list[Sample]:
    """Samples of several hundred short and long, streamed and whole responses, in the order in which they ended."""
    deadline = time.monotonic() + 25

    def ask(number: int) -> None:
        tokens = random.Random(number)
        with httpx.Client(base_url=f"http://{stocked_live.listen}", timeout=60, trust_env=False) as client:
            while time.monotonic() < deadline:
                body = {
                    "messages": [{"role": "user", "content": "Hello"}],
                    "max_tokens": int(tokens.lognormvariate(2.2, 0.8)) + 1,
                    "stream": tokens.random() < 0.5,
                }
                assert client.post("/v1/chat/completions", json=body).status_code == 200

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    found = [one for one in Samples(stocked_live.host, "blue", "1.0.0").new() if one.is_answer]
    assert len(found) > 500
    assert sum(one.first is not None for one in found) > 200
    return found


def same(sample: Sample, dice: random.Random) -> Sample:
    """An equal version."""
    return sample


def slower(sample: Sample, dice: random.Random) -> Sample:
    """A version whose responses take 1.5 times as long."""
    return replace(sample, seconds=sample.seconds * 1.5, first=sample.first and sample.first * 1.5)


def failing(sample: Sample, dice: random.Random) -> Sample:
    """A version of which 5 % of the responses are errors."""
    return replace(sample, status=500) if dice.random() < 0.05 else sample


def rolled_back(traffic: list[Sample], fault: Fault, seed: int) -> tuple[str, float] | None:
    """Simulate a rollout with a canary of 10 and 50 % and a bake; returns why and after how many seconds it ended."""
    dice = random.Random(seed)

    def draw(rate: float, at: float) -> list[Sample]:
        count = sum(dice.random() < rate * LOOK / 50 for _ in range(50))
        return [replace(dice.choice(traffic), at=at) for _ in range(count)]

    history, clock = [one for _ in range(int(60 / LOOK)) for one in draw(RATE, 0)], 0.0
    for share in (*SHARES, 1.0):
        margin = Limits().p95_margin if share < 1.0 else Limits().bake_p95_margin
        warm = clock + WARM_UP["overlap"]
        comparison = Comparison(Limits(p95_margin=margin), windows=len(SHARES) + 1, times_from=warm)
        (comparison.live if share == 1.0 else comparison.before).samples += history
        for look in range(int(STEP / LOOK)):
            clock += LOOK
            responses = [fault(one, dice) for one in draw(RATE * share, clock)]
            comparison.candidate.samples += responses if share < 1.0 or clock >= warm else []
            comparison.live.samples += draw(RATE * (1 - share), clock)
            if why := comparison.look(last=look == int(STEP / LOOK) - 1, include_times=clock >= warm + MIN_SPAN):
                return why, clock
    return None


def outcomes(traffic: list[Sample], fault: Fault) -> Iterator[tuple[str, float] | None]:
    """Simulate all rollouts."""
    for seed in range(ROLLOUTS):
        yield rolled_back(traffic, fault, seed)


def test_an_equal_version_is_not_rolled_back(traffic: list[Sample]) -> None:
    """Fewer than 2 % of 200 rollouts of an equal version are rolled back."""
    alarms = [one for one in outcomes(traffic, same) if one]
    print(f"\nequal: {len(alarms)} of {ROLLOUTS} rolled back: {alarms}")
    assert len(alarms) < 0.02 * ROLLOUTS


@pytest.mark.parametrize(("fault", "word"), [(slower, "p95"), (failing, "failed")])
def test_a_version_that_is_worse_is_rolled_back(traffic: list[Sample], fault: Fault, word: str) -> None:
    """More than 98 % of 200 rollouts of a version that is 1.5 times as slow, or of which 5 % fail, are rolled back."""
    caught = [one for one in outcomes(traffic, fault) if one]
    after = sorted(seconds for _, seconds in caught)
    print(
        f"\n{word}: {len(caught)} of {ROLLOUTS} caught, median after {after[len(after) // 2]:.0f} s of simulated time"
    )
    assert len(caught) > 0.98 * ROLLOUTS
    assert all(word in why for why, _ in caught)


def test_a_version_with_a_slower_tail_is_rolled_back(traffic: list[Sample]) -> None:
    """More than 90 % of 200 rollouts of a version whose slowest tenth takes 1.5 times as long are rolled back."""
    long = sorted(one.seconds for one in traffic)[len(traffic) * 9 // 10]
    caught = [
        one for one in outcomes(traffic, lambda one, dice: slower(one, dice) if one.seconds > long else one) if one
    ]
    print(f"\nslowest tenth slower: {len(caught)} of {ROLLOUTS} caught")
    assert len(caught) > 0.9 * ROLLOUTS


def test_one_pause_is_not_a_slower_version(traffic: list[Sample]) -> None:
    """Responses that are delayed within one short interval are ignored; the same delays spread over time are not."""
    comparison = Comparison(Limits(), windows=1)
    comparison.live.samples += traffic[:400]
    for number, one in enumerate(traffic[:400]):
        slow = 200 <= number < 240
        comparison.candidate.samples.append(replace(one, at=number, seconds=one.seconds + 3 * slow))
    assert comparison.look() is None
    spread = Comparison(Limits(), windows=1)
    spread.live.samples += traffic[:400]
    spread.candidate.samples += [
        replace(one, at=number, seconds=one.seconds + 3 * (number % 10 == 0))
        for number, one in enumerate(traffic[:400])
    ]
    assert "p95" in (spread.look() or "")


def test_times_count_after_the_warm_up() -> None:
    """Times of responses before the warm-up do not count, to clients or mirrored; errors count at once."""
    limits = Limits(max_p95=2.0)
    for kind in (1, 2):
        for warm_from, is_worse in ((2.0, False), (0.0, True)):
            comparison = Comparison(limits, windows=1, times_from=warm_from)
            comparison.live.samples += [sample() for _ in range(500)]
            comparison.candidate.samples += [sample(seconds=3, at=0.01 * number, kind=kind) for number in range(200)]
            assert bool(comparison.look()) is is_worse
    comparison = Comparison(limits, windows=1, times_from=2.0)
    comparison.live.samples += [sample() for _ in range(500)]
    comparison.candidate.samples += [sample(status=500, at=1) for _ in range(20)]
    assert "failed" in (comparison.look() or "")


def test_errors_of_both_slots_are_not_counted_against_the_candidate() -> None:
    """If 10 % of both slots' requests fail, the candidate is not worse, though none failed before the window."""
    comparison = Comparison(Limits(), windows=1)
    comparison.before.samples += [sample() for _ in range(1000)]
    for side in (comparison.candidate, comparison.live):
        side.samples += [sample(status=500 if number % 10 == 0 else 200) for number in range(200)]
    assert comparison.look() is None
    comparison.candidate.samples += [sample(status=500) for _ in range(40)]
    assert "failed" in (comparison.look(last=True) or "")


def test_errors_are_tested_against_the_time_before_the_window_too() -> None:
    """5 failures of 100 are not significant against 0 of 60, and significant against 0 of 2000 before the window."""
    for history, expected in ((0, None), (2000, "5.0% of its 100 requests failed, live slot 0.0%")):
        comparison = Comparison(Limits(), windows=1)
        comparison.before.samples += [sample() for _ in range(history)]
        comparison.live.samples += [sample() for _ in range(60)]
        comparison.candidate.samples += [sample(status=500 if number < 5 else 200) for number in range(100)]
        why = comparison.look()
        assert (why is None) if expected is None else expected in (why or "")


def test_too_few_responses_are_not_tested() -> None:
    """Below the minimum of responses no time is tested, however long."""
    comparison = Comparison(Limits(min_requests=50), windows=1)
    comparison.live.samples += [sample() for _ in range(1000)]
    comparison.candidate.samples += [sample(seconds=9) for _ in range(49)]
    assert comparison.look(last=True) is None
    comparison.candidate.samples += [sample(seconds=9) for _ in range(1)]
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
        side.samples += [sample(**(bad if number % 8 == 0 else {})) for number in range(200)]
    assert ", limit " in (comparison.look() or "")


def test_agreement_of_mirrored_responses() -> None:
    """With `min_agreement`, too few equal mirrored responses are worse; without it, all of them may differ."""
    mirrored = [sample(kind=3 if number % 2 else 4) for number in range(100)]
    for limits, expected in ((Limits(), None), (Limits(min_agreement=0.9), "of its mirrored responses")):
        comparison = Comparison(limits, windows=1)
        comparison.candidate.samples += mirrored
        why = comparison.look()
        assert (why is None) if expected is None else expected in (why or "")


def test_fisher_exact() -> None:
    """The p-value of Fisher's tea tasting, three of four cups right, is 17/70."""
    assert fisher_exact(3, 4, 1, 4) == pytest.approx(17 / 70)


def test_mann_whitney() -> None:
    """Without an overlap the exact p-value of three against three is 1/20; the test is one-sided."""
    assert mann_whitney([4, 5, 6], [1, 2, 3]) == pytest.approx(1 / 20)
    assert mann_whitney([1, 2, 3], [4, 5, 6]) > 0.9


def test_levels_of_all_looks_add_up_to_alpha() -> None:
    """Half of alpha is spent by looks as responses come, half by the last one; a look is due after 30 % more."""
    spending = AlphaSpending(first=10, alpha=0.02)
    assert spending.next_level(9) is None
    assert spending.next_level(10) == pytest.approx(0.01 / 2)
    assert spending.next_level(12) is None
    levels = [level for count in range(13, 100_000) if (level := spending.next_level(count))]
    assert levels[0] == pytest.approx(0.01 / 6)
    assert 0.004 < sum(levels) < 0.005
    assert spending.next_level(10, last=True) == 0.01


def test_p95_is_a_measured_value() -> None:
    """The 95th percentile is the smallest value that 95 % do not exceed."""
    assert p95(range(1, 101)) == 96
    assert p95([5.0]) == 5.0
    assert p95([]) is None


def test_thirds() -> None:
    """Values are split into three parts in order, without a gap."""
    assert thirds([1, 2, 3, 4, 5]) == [[1], [2, 3], [4, 5]]


def sample(
    seconds: float = 1.0, first: float | None = 0.1, status: float = 200, kind: int = 1, at: float = 0.0
) -> Sample:
    """Return the sample of one response."""
    return Sample(at, seconds, first, int(status), kind)
