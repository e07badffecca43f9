"""Simulated rollouts: the responses of two slots, from measured ones or on a machine that does other work too."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from deploy.analysis.comparison import Comparison
from deploy.analysis.samples import Sample
from deploy.policy import Limits
from deploy.rollout.judge import MIN_SPAN, WARM_UP
from service.contract.samples import Origin

__all__ = ["Alarm", "Busy", "Fault", "FromClients", "Measured", "Source", "failing", "same", "simulate", "slower"]

LIVE, CANDIDATE = 0, 1
_LOOK = 2.0  # seconds between two looks
_ALONE = 0.1  # share of the candidate up to which the live slot's times are those of a slot that answers everything
_TICK = 0.05  # seconds

Fault = Callable[[Sample, random.Random], Sample]
Alarm = tuple[str, str, float]
"""The window in which a candidate was found worse, why, and the seconds since the first window began."""


class Source(Protocol):
    """Where the responses of a simulated rollout come from."""

    def responses(self, side: int, share: float, begin: float, end: float) -> list[Sample]:
        """Return the responses of a side that answers `share` of the requests, in order, by second."""


class Measured:
    """Responses drawn at random from measured ones: each is independent of all others."""

    def __init__(self, samples: Sequence[Sample], seed: int, *, rate: float) -> None:
        self._samples, self._rate, self._dice = samples, rate, random.Random(seed)

    def responses(self, side: int, share: float, begin: float, end: float) -> list[Sample]:
        """See Source."""
        found, at = [], begin
        while share and (at := at + self._dice.expovariate(self._rate * share)) < end:
            found.append(replace(self._dice.choice(self._samples), at=at))
        return found


class FromClients:
    """The responses of another source, whose requests came from clients with these shares, each at its own address."""

    def __init__(self, source: Source, seed: int, shares: Sequence[float]) -> None:
        self._source, self._shares, self._dice = source, shares, random.Random(seed)

    def responses(self, side: int, share: float, begin: float, end: float) -> list[Sample]:
        """See Source."""
        found = self._source.responses(side, share, begin, end)
        clients = self._dice.choices(range(1, len(self._shares) + 1), self._shares, k=len(found))
        return [replace(one, origin=Origin(client)) for one, client in zip(found, clients, strict=True)]


class Busy:
    """Responses of two slots on two cores that have bursts of other work.

    A burst takes 0.3 to 5 s, with pauses of `pause` seconds in the mean, and makes what runs on its core take three
    times as long. A slot stays on a core for 5 s in the mean. Besides, the machine's speed drifts within minutes. So
    the times depend on the moment, and differently on each side. A slot that answers more requests is slower by
    `load_effect`, the logarithm of its time with all of the requests divided by that with none: the process is the
    bottleneck; 0: the device is, which both share.

    The figures are such that p95s, and the differences of the two sides in blocks of 1 to 10 s, vary as they did at two
    slots of tiny models under the mixed load (`python -m deploy.loadtest`, 14 answers/s) beside such bursts: 180 s with
    30 %, then 120 s with 50 % at the second one, on two cores with a load average of 10 to 16. With 50 % the p95s of a
    block of 5 s differed by 0.20 (standard deviation of the logarithm), without a correlation of successive blocks;
    with 30 % that slot's p95 was half as great as the other's.
    """

    def __init__(
        self,
        seed: int,
        seconds: float,
        *,
        rate: float = 14.0,
        pause: float = 5.0,
        drift: float = 0.15,
        load_effect: float = 1.8,
    ) -> None:
        dice = self._dice = np.random.default_rng(seed)
        self._rate, self._load_effect = rate, load_effect
        ticks = int((seconds + 60) / _TICK)
        busy = np.zeros((2, ticks))
        for core in busy:
            at = dice.exponential(pause)
            while at < ticks * _TICK:
                end = at + 0.3 * (5 / 0.3) ** dice.random()
                core[int(at / _TICK) : int(end / _TICK)] = 1
                at = end + dice.exponential(pause)
        level = [dice.normal(0, drift)]
        for _ in range(int(ticks * _TICK)):
            level.append(level[-1] * math.exp(-1 / 30) + dice.normal(0, drift * math.sqrt(1 - math.exp(-2 / 30))))
        self._clock = np.arange(ticks + 1) * _TICK
        machine = np.exp(np.interp(self._clock[:-1], np.arange(len(level)), level))
        self._work = []  # of each side: seconds of work that were done until a tick
        for _ in (LIVE, CANDIDATE):
            core_of = (np.cumsum(dice.random(ticks) < _TICK / 5) + dice.integers(2)) % 2
            speed = machine / (1 + 2 * busy[core_of, np.arange(ticks)])
            self._work.append(np.concatenate([[0], np.cumsum(speed) * _TICK]))

    def responses(self, side: int, share: float, begin: float, end: float) -> list[Sample]:
        """See Source. Three of ten are streamed, and longer, as in the mixed load."""
        dice = self._dice
        count = dice.poisson(self._rate * share * (end - begin))
        start = dice.uniform(begin, end, count)
        is_streamed = dice.random(count) < 0.3
        usual = np.where(
            is_streamed, 0.28 * np.exp(dice.normal(0, 0.2, count)), 0.075 * np.exp(dice.normal(0, 0.5, count))
        )
        work = usual * math.exp(self._load_effect * (share - 0.5))
        done = self._work[side]
        first, last = (
            np.interp(np.interp(start, self._clock, done) + part, done, self._clock) for part in (work / 4, work)
        )
        rows = zip(*(row.tolist() for row in (last, last - start, first - start, is_streamed)), strict=True)
        found = [Sample(at, seconds, ttft if streamed else None, 200) for at, seconds, ttft, streamed in rows]
        return sorted(found, key=lambda sample: sample.at)


def same(sample: Sample, dice: random.Random) -> Sample:
    """An equal version."""
    return sample


def slower(sample: Sample, dice: random.Random) -> Sample:
    """A version whose responses take 1.5 times as long."""
    return replace(
        sample,
        at=sample.at + sample.seconds / 2,
        seconds=sample.seconds * 1.5,
        first=sample.first and sample.first * 1.5,
    )


def failing(sample: Sample, dice: random.Random) -> Sample:
    """A version of which 5 % of the responses are errors."""
    return replace(sample, status=500) if dice.random() < 0.05 else sample


def simulate(
    source: Source, fault: Fault, *, shares: Sequence[float], step: float, before: float = 60.0, seed: int = 0
) -> Alarm | None:
    """Simulate a rollout with canary steps of `shares`, then a bake, all of `step` seconds.

    `before`: seconds of the live slot's responses that the analysis knows when the rollout begins.
    """
    dice = random.Random(seed)
    alone = source.responses(LIVE, 1.0, 0, before)
    begin = before
    for share in (*shares, 1.0):
        end, warm = begin + step, begin + WARM_UP["overlap"]
        is_bake, is_paired = share == 1.0, share <= 0.5
        margin = Limits().p95_margin if is_paired else Limits().bake_p95_margin
        comparison = Comparison(
            Limits(p95_margin=margin),
            windows=len(shares) + 1,
            times_from=warm,
            is_paired=is_paired,
        )
        comparison.before.add(alone)
        mine = sorted(
            (fault(one, dice) for one in source.responses(CANDIDATE, share, begin, end)), key=lambda one: one.at
        )
        live = [] if is_bake else source.responses(LIVE, 1 - share, begin, end)
        for look in range(1, int(step / _LOOK) + 1):
            now = begin + look * _LOOK
            for group, samples in ((comparison.candidate, mine), (comparison.live, live)):
                group.add(one for one in _until(samples, now) if not is_bake or one.at >= warm)
            if why := comparison.look(last=now >= end, include_times=now >= warm + MIN_SPAN):
                return ("bake" if is_bake else f"{share:.0%}"), why, now - before
        if share <= _ALONE:
            alone += live
        begin = end
    return None


def _until(samples: list[Sample], end: float) -> list[Sample]:
    """Remove the samples before `end` from an ordered list, and return them."""
    count = next((place for place, sample in enumerate(samples) if sample.at >= end), len(samples))
    found = samples[:count]
    del samples[:count]
    return found
