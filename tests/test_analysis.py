"""The verdict over hundreds of rollouts, simulated with times that a real service took to answer real clients."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from deploy.analysis.comparison import Comparison, chance, percentile
from deploy.analysis.samples import Sample, Samples
from deploy.policy import Limits
from deploy.rollout.judge import LEAST, SETTLE
from tests.box import Box

ROLLOUTS = 200
RATE = 20.0  # answers a second, both sides together
STEP = 60.0  # seconds, as by default
SHARES = (0.1, 0.5)
LOOK = 1.0

Fault = Callable[[Sample, random.Random], Sample]


@pytest.fixture(scope="module")
def traffic(stocked_live: Box) -> list[Sample]:
    """How some thousand short and long, streamed and whole answers of a real service went, in the order they ended."""
    over = time.monotonic() + 25

    def ask(number: int) -> None:
        tokens = random.Random(number)
        with httpx.Client(base_url=f"http://{stocked_live.listen}", timeout=60, trust_env=False) as client:
            while time.monotonic() < over:
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
    """A version that is as good as the one before."""
    return sample


def slower(sample: Sample, dice: random.Random) -> Sample:
    """Half as long again."""
    return replace(sample, seconds=sample.seconds * 1.5, first=sample.first and sample.first * 1.5)


def failing(sample: Sample, dice: random.Random) -> Sample:
    """One in twenty is an error."""
    return replace(sample, status=500) if dice.random() < 0.05 else sample


def rolled_back(traffic: list[Sample], fault: Fault, seed: int) -> tuple[str, float] | None:
    """Play a rollout: a canary of 10 and of 50 %, and the bake; returns why and after how many seconds it ended."""
    dice = random.Random(seed)

    def draw(rate: float, at: float) -> list[Sample]:
        count = sum(dice.random() < rate * LOOK / 50 for _ in range(50))
        return [replace(dice.choice(traffic), at=at) for _ in range(count)]

    history, clock = [one for _ in range(int(60 / LOOK)) for one in draw(RATE, 0)], 0.0
    for share in (*SHARES, 1.0):
        margin = Limits().p95_margin if share < 1.0 else Limits().bake_p95_margin
        warm = clock + SETTLE["overlap"]
        comparison = Comparison(Limits(p95_margin=margin), windows=len(SHARES) + 1, times_from=warm)
        (comparison.live if share == 1.0 else comparison.before).samples += history
        for look in range(int(STEP / LOOK)):
            clock += LOOK
            ours = [fault(one, dice) for one in draw(RATE * share, clock)]
            comparison.candidate.samples += ours if share < 1.0 or clock >= warm else []
            comparison.live.samples += draw(RATE * (1 - share), clock)
            if why := comparison.look(last=look == int(STEP / LOOK) - 1, at_times=clock >= warm + LEAST):
                return why, clock
    return None


def outcomes(traffic: list[Sample], fault: Fault) -> Iterator[tuple[str, float] | None]:
    """Play them all."""
    for seed in range(ROLLOUTS):
        yield rolled_back(traffic, fault, seed)


def test_an_equal_version_is_not_rolled_back(traffic: list[Sample]) -> None:
    """Fewer than 2 % of 200 rollouts of a version whose times and errors are those of the one before."""
    alarms = [one for one in outcomes(traffic, same) if one]
    print(f"\nequal: {len(alarms)} of {ROLLOUTS} rolled back: {alarms}")
    assert len(alarms) < 0.02 * ROLLOUTS


@pytest.mark.parametrize(("fault", "word"), [(slower, "p95"), (failing, "failed")])
def test_a_version_that_is_worse_is_rolled_back(traffic: list[Sample], fault: Fault, word: str) -> None:
    """More than 98 % of 200 rollouts: of one whose p95 is half as long again, and of one of which 5 % fail."""
    caught = [one for one in outcomes(traffic, fault) if one]
    after = sorted(seconds for _, seconds in caught)
    print(
        f"\n{word}: {len(caught)} of {ROLLOUTS} caught, median after {after[len(after) // 2]:.0f} s of simulated time"
    )
    assert len(caught) > 0.98 * ROLLOUTS
    assert all(word in why for why, _ in caught)


def test_a_version_that_is_slower_with_some_is_rolled_back(traffic: list[Sample]) -> None:
    """More than nine in ten of 200 rollouts of one that takes half as long again for its slowest tenth alone."""
    long = sorted(one.seconds for one in traffic)[len(traffic) * 9 // 10]
    caught = [
        one for one in outcomes(traffic, lambda one, dice: slower(one, dice) if one.seconds > long else one) if one
    ]
    print(f"\nslowest tenth slower: {len(caught)} of {ROLLOUTS} caught")
    assert len(caught) > 0.9 * ROLLOUTS


def test_one_hiccup_is_no_verdict(traffic: list[Sample]) -> None:
    """Everybody who is asked within one second takes three seconds longer, once: that is not the version's fault."""
    comparison = Comparison(Limits(), windows=1)
    comparison.live.samples += traffic[:400]
    for number, one in enumerate(traffic[:400]):
        slow = 200 <= number < 240
        comparison.candidate.samples.append(replace(one, at=number, seconds=one.seconds + 3 * slow))
    assert comparison.look() is None
    again = Comparison(Limits(), windows=1)
    again.live.samples += traffic[:400]
    again.candidate.samples += [
        replace(one, at=number, seconds=one.seconds + 3 * (number % 10 == 0))
        for number, one in enumerate(traffic[:400])
    ]
    assert "p95" in (again.look() or "")


def test_the_first_answers_of_any_version_are_slow() -> None:
    """What the candidate took until it was warm is no matter of times, served or mirrored; its errors count at once."""
    limits = Limits(max_p95=2.0)
    for kind in (1, 2):
        for warm_from, is_worse in ((2.0, False), (0.0, True)):
            comparison = Comparison(limits, windows=1, times_from=warm_from)
            comparison.live.samples += [answer() for _ in range(500)]
            comparison.candidate.samples += [answer(seconds=3, at=0.01 * number, kind=kind) for number in range(200)]
            assert bool(comparison.look()) is is_worse
    comparison = Comparison(limits, windows=1, times_from=2.0)
    comparison.live.samples += [answer() for _ in range(500)]
    comparison.candidate.samples += [answer(status=500, at=1) for _ in range(20)]
    assert "failed" in (comparison.look() or "")


def test_what_befalls_both_sides_is_nobodys_fault() -> None:
    """A tenth of the requests of both sides fails from now on, and none failed before: no verdict."""
    comparison = Comparison(Limits(), windows=1)
    comparison.before.samples += [answer() for _ in range(1000)]
    for side in (comparison.candidate, comparison.live):
        side.samples += [answer(status=500 if number % 10 == 0 else 200) for number in range(200)]
    assert comparison.look() is None
    comparison.candidate.samples += [answer(status=500) for _ in range(40)]
    assert "failed" in (comparison.look(last=True) or "")


def test_what_the_live_slot_did_before_tells_errors_from_chance() -> None:
    """Five failures of a hundred beside none of sixty may be chance; beside none of two thousand they are not."""
    for history, expected in ((0, None), (2000, "5.0% of its 100 requests failed")):
        comparison = Comparison(Limits(), windows=1)
        comparison.before.samples += [answer() for _ in range(history)]
        comparison.live.samples += [answer() for _ in range(60)]
        comparison.candidate.samples += [answer(status=500 if number < 5 else 200) for number in range(100)]
        why = comparison.look()
        assert (why is None) if expected is None else expected in (why or "")


def test_too_few_are_no_verdict() -> None:
    """Below the minimum nothing is concluded, however bad it looks."""
    comparison = Comparison(Limits(min_requests=50), windows=1)
    comparison.live.samples += [answer() for _ in range(1000)]
    comparison.candidate.samples += [answer(seconds=9) for _ in range(49)]
    assert comparison.look(last=True) is None
    comparison.candidate.samples += [answer(seconds=9) for _ in range(1)]
    assert "p95" in (comparison.look(last=True) or "")


@pytest.mark.parametrize(
    ("limits", "bad"),
    [
        (Limits(max_error_rate=0.02), {"status": 500}),
        (Limits(max_p95=2.0), {"seconds": 3.0}),
        (Limits(max_ttft_p95=0.5), {"first": 0.7}),
    ],
)
def test_absolute_limits_need_no_comparison(limits: Limits, bad: dict[str, Any]) -> None:
    """What the operator will not have at all is no question of the live slot: it may be as bad."""
    comparison = Comparison(limits, windows=1)
    for side in (comparison.candidate, comparison.live):
        side.samples += [answer(**(bad if number % 8 == 0 else {})) for number in range(200)]
    assert "the limit is" in (comparison.look() or "")


def test_an_agreement_that_was_asked_for() -> None:
    """Of the mirrored greedy answers so many must be the same; without such a limit any may differ."""
    mirrored = [answer(kind=3 if number % 2 else 4) for number in range(100)]
    for limits, expected in ((Limits(), None), (Limits(min_agreement=0.9), "of its mirrored answers")):
        comparison = Comparison(limits, windows=1)
        comparison.candidate.samples += mirrored
        why = comparison.look()
        assert (why is None) if expected is None else expected in (why or "")


def test_chance_is_fishers() -> None:
    """A tea taster who names three of four cups right may have guessed: 17 / 70."""
    assert chance(3, 4, 1, 4) == pytest.approx(17 / 70)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """The smallest that 95 % do not exceed."""
    assert percentile(range(1, 101)) == 96
    assert percentile([5.0]) == 5.0
    assert percentile([]) is None


def answer(
    seconds: float = 1.0, first: float | None = 0.1, status: float = 200, kind: int = 1, at: float = 0.0
) -> Sample:
    """Make one answer."""
    return Sample(at, seconds, first, int(status), kind)
