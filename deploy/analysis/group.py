"""The responses of one side in one window."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from deploy.analysis.samples import Sample
from deploy.analysis.statistics import p95
from deploy.analysis.verdict import TIMES, MetricName

__all__ = ["Failures", "Group", "Timed", "Times", "seconds_of"]

_KEPT = 20_000  # times of one metric in a group; older ones are dropped
_SERVED: tuple[MetricName, MetricName] = ("p95", "ttft p95")
_MIRRORED: tuple[MetricName, MetricName] = ("mirrored p95", "mirrored ttft p95")
_OK = 200
_OVERLOADED = (429, 503)  # statuses of a server that has too much to do
_ONE_CAUSE, _ONE_OVERLOAD = 0.25, 5.0  # seconds


class Timed(NamedTuple):
    """One successful response of the model."""

    at: float
    """When it ended: CLOCK_MONOTONIC, in seconds."""
    seconds: float
    """What was measured: to the end, or to the first token."""
    is_streamed: bool


class Times:
    """The times of one metric, in the order in which the responses ended."""

    def __init__(self) -> None:
        self.all: list[Timed] = []
        self._p95: float | None = None

    def add(self, found: list[Timed]) -> None:
        """Add times, in any order."""
        if found:
            self.all += found
            self.all.sort(key=attrgetter("at"))
            del self.all[:-_KEPT]
            self._p95 = None

    @property
    def p95(self) -> float | None:
        """The 95th percentile in seconds; None of nothing."""
        if self._p95 is None:
            self._p95 = p95(seconds_of(self.all))
        return self._p95

    @property
    def span(self) -> float:
        """The seconds between the first and the last response; 0 of nothing."""
        return self.all[-1].at - self.all[0].at if self.all else 0.0

    def __len__(self) -> int:
        return len(self.all)


@dataclass
class Failures:
    """How many of `count` responses failed, and when."""

    count: int = 0
    failed: int = 0
    periods: set[int] = field(default_factory=set)
    """The quarters of a second in which a response ended."""
    incidents: set[tuple[float, int]] = field(default_factory=set)
    """The periods in which one failed, each with its length: a quarter of a second, because a process that dies breaks
    off all of its responses; five seconds where the server had too much to do: a queue takes longer to empty."""

    def add(self, sample: Sample) -> None:
        """Count one response."""
        self.count += 1
        self.periods.add(int(sample.at // _ONE_CAUSE))
        if sample.is_error:
            self.failed += 1
            length = _ONE_OVERLOAD if sample.status in _OVERLOADED else _ONE_CAUSE
            self.incidents.add((length, int(sample.at // length)))

    @property
    def share(self) -> float | None:
        """The share of failed responses, from 0 to 1; None without responses."""
        return self.failed / self.count if self.count else None

    @property
    def independent(self) -> tuple[int, int]:
        """The number of incidents, and the number of responses if each incident were one."""
        return len(self.incidents), self.count - self.failed + len(self.incidents)

    def __add__(self, other: Failures) -> Failures:
        return Failures(
            self.count + other.count,
            self.failed + other.failed,
            self.periods | other.periods,
            self.incidents | other.incidents,
        )


class Group:
    """Responses of one side, which grow: counts of all, and the times of the model's successful ones.

    `times_from`, `times_until`: CLOCK_MONOTONIC seconds; times of responses that ended before or after do not count.
    `disturbed`: responses whose times do not count either, nor that the server had too much to do.
    """

    def __init__(
        self,
        samples: Iterable[Sample] = (),
        *,
        times_from: float = 0.0,
        times_until: float = float("inf"),
        disturbed: Container[Sample] | None = None,
    ) -> None:
        self.all, self.of_model = Failures(), Failures()
        self.mirrored: list[Sample] = []
        """The responses to mirrored requests, which are included in the counts too."""
        self._times_from, self._times_until = times_from, times_until
        self._disturbed = disturbed or ()
        self.times: dict[MetricName, Times] = {name: Times() for name in TIMES}
        self.add(samples)

    def add(self, samples: Iterable[Sample]) -> None:
        """Add responses, in any order."""
        found: dict[MetricName, list[Timed]] = {name: [] for name in TIMES}
        for sample in samples:
            is_disturbed = sample in self._disturbed
            if is_disturbed and sample.status in _OVERLOADED:
                continue
            self.all.add(sample)
            if not sample.is_answer:
                continue
            self.of_model.add(sample)
            if sample.is_mirrored:
                self.mirrored.append(sample)
            if sample.status == _OK and self._times_from <= sample.at < self._times_until and not is_disturbed:
                total, first = _MIRRORED if sample.is_mirrored else _SERVED
                found[total].append(Timed(sample.at, sample.seconds, sample.first is not None))
                if sample.first is not None:
                    found[first].append(Timed(sample.at, sample.first, True))
        for name, times in found.items():
            self.times[name].add(times)
        del self.mirrored[:-_KEPT]


def seconds_of(times: Iterable[Timed]) -> list[float]:
    """Return the measured values alone."""
    return [one.seconds for one in times]
