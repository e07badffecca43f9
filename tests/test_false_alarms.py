"""The analysis over hundreds of simulated rollouts, with times measured at a real service or of a busy machine."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import httpx
import pytest

from deploy.analysis.samples import Sample, Samples
from tests.box import Box
from tests.simulation import Alarm, Busy, Fault, Measured, failing, same, simulate, slower

pytestmark = pytest.mark.model

RATE = 20.0  # responses per second, both slots together
STEP = 60.0  # seconds, the default of --step and --bake
SHARES = (0.1, 0.5)
BEFORE = 200.0  # seconds for which the live slot has served
DEVICE, PROCESS = 0.0, 1.8  # load_effect: what limits the answers


@pytest.fixture(scope="module")
def traffic(stocked_live: Box) -> list[Sample]:
    """Samples of several hundred short and long, streamed and whole responses, in the order in which they ended."""

    def ask(number: int) -> None:
        tokens = random.Random(number)
        with httpx.Client(base_url=f"http://{stocked_live.listen}", timeout=60, trust_env=False) as client:
            for _ in range(130):
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


def four_times_slower(sample: Sample, dice: random.Random) -> Sample:
    """A version whose responses take four times as long."""
    return replace(sample, seconds=sample.seconds * 4, first=sample.first and sample.first * 4)


@pytest.fixture(scope="module")
def rollouts(request: pytest.FixtureRequest) -> int:
    """How many rollouts of each kind are simulated."""
    return 100 if request.config.getoption("--long") else 20


def outcomes(traffic: list[Sample], fault: Fault, rollouts: int, *, shares: tuple[float, ...] = SHARES) -> list[Alarm]:
    """Simulate rollouts with independent responses; returns those that were rolled back."""
    found = (
        simulate(Measured(traffic, seed, rate=RATE), fault, shares=shares, step=STEP, before=BEFORE, seed=seed)
        for seed in range(rollouts)
    )
    return [one for one in found if one]


def busy(
    fault: Fault, load_effect: float, rollouts: int, *, step: float, shares: tuple[float, ...], before: float = 20
) -> list[Alarm]:
    """Simulate rollouts on a machine with bursts of other work; returns those that were rolled back."""
    found = []
    for seed in range(rollouts):
        source = Busy(seed, before + step * (len(shares) + 1), load_effect=load_effect)
        if alarm := simulate(source, fault, shares=shares, step=step, before=before, seed=seed):
            found.append(alarm)
    return found


def show(name: str, alarms: list[Alarm], rollouts: int) -> None:
    """Print how many rollouts were rolled back, and after how long."""
    seconds = sorted(seconds for *_, seconds in alarms) or [0.0]
    print(
        f"\n{name}: {len(alarms)} of {rollouts} rolled back, median after {seconds[len(seconds) // 2]:.0f} s, "
        f"at most {seconds[-1]:.0f} s of simulated time"
    )


def test_an_equal_version_is_not_rolled_back(traffic: list[Sample], rollouts: int) -> None:
    """At most 2 % of the rollouts of an equal version are rolled back, and of a few at most one."""
    alarms = outcomes(traffic, same, rollouts)
    show("equal", alarms, rollouts)
    assert len(alarms) <= max(1, 0.02 * rollouts)


@pytest.mark.parametrize(("fault", "word"), [(slower, "p95"), (failing, "failed")])
def test_a_version_that_is_worse_is_rolled_back(traffic: list[Sample], fault: Fault, word: str, rollouts: int) -> None:
    """At least 98 % of the rollouts of a version that is 1.5 times as slow, or of which 5 % fail, are rolled back."""
    caught = outcomes(traffic, fault, rollouts)
    show(word, caught, rollouts)
    assert len(caught) >= 0.98 * rollouts
    assert all(word in why for _, why, _ in caught)


@pytest.mark.parametrize("shares", [SHARES, pytest.param((), marks=pytest.mark.long)])
def test_a_version_with_a_slower_tail_is_rolled_back(
    traffic: list[Sample], shares: tuple[float, ...], rollouts: int
) -> None:
    """A version whose slowest tenth takes 1.5 times as long is mostly rolled back: in more than 90 of 100 rollouts.

    A canary finds most of them, and without one the bake does.
    """
    long = sorted(one.seconds for one in traffic)[len(traffic) * 9 // 10]
    caught = outcomes(
        traffic, lambda one, dice: slower(one, dice) if one.seconds > long else one, rollouts, shares=shares
    )
    show("slowest tenth slower", caught, rollouts)
    assert len(caught) > (0.9 if rollouts >= 100 else 0.75) * rollouts
    assert not shares or sum(window != "bake" for window, *_ in caught) > (0.3 if rollouts >= 100 else 0.1) * rollouts


@pytest.mark.parametrize("load_effect", [DEVICE, PROCESS])
@pytest.mark.parametrize(
    ("shares", "step", "before"),
    [
        ((0.1, 0.3, 0.5), 20, 20),
        ((), 60, 200),
        pytest.param((0.5, 0.9), 30, 60, marks=pytest.mark.long),
        pytest.param((), 60, 90, marks=pytest.mark.long),
        pytest.param((0.1, 0.3, 0.5), 60, 300, marks=pytest.mark.long),
    ],
)
def test_an_equal_version_is_not_rolled_back_on_a_busy_machine(
    shares: tuple[float, ...], step: float, before: float, load_effect: float, rollouts: int
) -> None:
    """At most 2 % are, of a few one, while bursts of other work make times of the same moments depend on each other.

    In short steps, with more than half of the requests, and in a bake without a canary.
    """
    alarms = busy(same, load_effect, rollouts, step=step, shares=shares, before=before)
    show("equal on a busy machine", alarms, rollouts)
    assert len(alarms) <= max(1, 0.02 * rollouts), alarms


@pytest.mark.parametrize(
    ("fault", "word", "load_effect"),
    [
        (slower, "p95", PROCESS),
        (failing, "failed", DEVICE),
        pytest.param(slower, "p95", DEVICE, marks=pytest.mark.long),
        pytest.param(failing, "failed", PROCESS, marks=pytest.mark.long),
    ],
)
def test_a_version_that_is_worse_is_rolled_back_on_a_busy_machine(
    fault: Fault, word: str, load_effect: float, rollouts: int
) -> None:
    """At least 98 % of the rollouts of a version that is 1.5 times as slow, or of which 5 % fail, are rolled back."""
    caught = busy(fault, load_effect, rollouts, step=60, shares=(0.1, 0.3, 0.5))
    show(f"{word} on a busy machine", caught, rollouts)
    assert len(caught) >= 0.98 * rollouts
    assert all(word in why for _, why, _ in caught)


def test_a_much_slower_version_is_found_in_the_bake(rollouts: int) -> None:
    """Without a canary, on a busy machine, a version that takes four times as long is rolled back within a minute."""
    caught = busy(four_times_slower, DEVICE, rollouts, step=60, shares=(), before=400)
    show("four times as slow, in the bake", caught, rollouts)
    assert len(caught) >= 0.9 * rollouts
