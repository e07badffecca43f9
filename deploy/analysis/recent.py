"""The rate and the times of a slot's responses over the last 30 seconds."""

from __future__ import annotations

import time
from collections import deque
from itertools import takewhile

from deploy.analysis.group import Group
from deploy.analysis.samples import Sample, Samples
from deploy.host import Host

__all__ = ["RecentStats"]

_WINDOW = 30.0  # seconds
_KEPT = 20_000  # responses; older ones are dropped


class RecentStats:
    """The responses of one version in one slot, read from its workers' sample rings at each `update`."""

    def __init__(self, host: Host, slot: str, version: str) -> None:
        self.version = version
        self._samples = Samples(host, slot, version)
        self._responses: deque[Sample] = deque(maxlen=_KEPT)
        self._mirrored: deque[Sample] = deque(maxlen=_KEPT)

    def update(self) -> None:
        """Read the samples that were written since the last call."""
        for sample in sorted(self._samples.new(), key=lambda sample: sample.at):
            (self._mirrored if sample.is_mirrored else self._responses).append(sample)

    @property
    def requests_per_s(self) -> float:
        """Responses per second over the window, or since the oldest one that is kept, but over 1 s at least."""
        now = time.monotonic()
        span = min(_WINDOW, max(1.0, now - self._responses[0].at)) if self._responses else _WINDOW
        return round(self.between(now - span).all.count / span, 2)

    @property
    def p95(self) -> float | None:
        """The 95th percentile of seconds until the end of the model's responses; None without one in the window."""
        return _rounded(self.between(time.monotonic() - _WINDOW).times["p95"].p95)

    @property
    def ttft_p95(self) -> float | None:
        """The 95th percentile of seconds until the first token of streamed responses; None without one."""
        return _rounded(self.between(time.monotonic() - _WINDOW).times["ttft p95"].p95)

    @property
    def errors(self) -> float | None:
        """The share of failed responses over the window, from 0 to 1; None without responses."""
        return _rounded(self.between(time.monotonic() - _WINDOW).all.share)

    def per_second(self, seconds: int) -> list[int]:
        """Return the number of responses in each of the last `seconds` seconds, oldest first."""
        now = time.monotonic()
        counts = [0] * seconds
        for sample in self._between(self._responses, now - seconds):
            counts[min(seconds - 1, max(0, int(sample.at - now + seconds)))] += 1
        return counts

    def between(self, begin: float, end: float = float("inf"), *, mirrored: bool = False) -> Group:
        """Return the responses, or the mirrored ones, that ended in [begin, end), CLOCK_MONOTONIC seconds."""
        return Group(self._between(self._mirrored if mirrored else self._responses, begin, end))

    @staticmethod
    def _between(samples: deque[Sample], begin: float, end: float = float("inf")) -> list[Sample]:
        newest_first = takewhile(lambda sample: sample.at >= begin, reversed(samples))
        return [sample for sample in newest_first if sample.at < end]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
