"""How a slot does now: the requests it answers in a second, and the times of its slowest twentieth."""

from __future__ import annotations

import time
from collections import deque

from deploy.analysis.comparison import Group, percentile
from deploy.analysis.samples import Sample, Samples
from deploy.host import Host

__all__ = ["RecentStats"]

_WINDOW = 30.0  # seconds
_KEPT = 20_000  # answers; older ones are forgotten


class RecentStats:
    """Reads the rings of one version in one slot, a little at a time."""

    def __init__(self, host: Host, slot: str, version: str) -> None:
        self.version = version
        self._samples = Samples(host, slot, version)
        self._answers: deque[Sample] = deque(maxlen=_KEPT)
        self._mirrored: deque[Sample] = deque(maxlen=_KEPT)

    def look(self) -> None:
        """Read what has come since the last look."""
        for one in sorted(self._samples.new(), key=lambda one: one.at):
            (self._mirrored if one.is_mirrored else self._answers).append(one)

    @property
    def requests_per_s(self) -> float:
        """Answers in a second, over half a minute, or over as long as there have been any and all are still known."""
        now = time.monotonic()
        span = min(_WINDOW, max(1.0, now - self._answers[0].at)) if self._answers else _WINDOW
        return round(len(self.between(now - span).samples) / span, 2)

    @property
    def p95(self) -> float | None:
        """Seconds; None where the model was asked nothing in the last half minute."""
        return _rounded(percentile(self.between(time.monotonic() - _WINDOW).times("p95")))

    @property
    def ttft_p95(self) -> float | None:
        """Seconds until the first token of streamed answers; None where there were none."""
        return _rounded(percentile(self.between(time.monotonic() - _WINDOW).times("ttft p95")))

    def per_second(self, seconds: int) -> list[int]:
        """How many answers there were in each of the last so many seconds, oldest first."""
        now = time.monotonic()
        counts = [0] * seconds
        for one in self.between(now - seconds).samples:
            counts[min(seconds - 1, max(0, int(one.at - now + seconds)))] += 1
        return counts

    def between(self, begin: float, end: float = float("inf"), *, mirrored: bool = False) -> Group:
        """The answers that ended between two moments (CLOCK_MONOTONIC), or the mirrored ones."""
        found = []
        for one in reversed(self._mirrored if mirrored else self._answers):
            if one.at < begin:
                break
            if one.at < end:
                found.append(one)
        return Group(found)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
