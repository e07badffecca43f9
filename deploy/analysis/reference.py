"""What a candidate is compared with: the live slot's responses since shortly before the rollout."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import chain

from deploy.analysis.samples import Sample, Samples
from deploy.host import Host

__all__ = ["Reference"]

_SECONDS = 600.0  # for which responses are kept
_KEPT = 20_000  # of the model's responses, and of others; older ones are dropped


class Reference:
    """The responses of the live slot's version; those of its last minutes when this is created, and later ones.

    A worker's ring holds the last 8192 responses, and most of them may be to cheap requests, so it is read several
    times in a rollout and the model's responses are kept apart.
    """

    def __init__(self, host: Host, slot: str, version: str) -> None:
        self._samples = Samples(host, slot, version)
        self._answers: deque[Sample] = deque(maxlen=_KEPT)
        self._others: deque[Sample] = deque(maxlen=_KEPT)
        self.update()

    def update(self) -> list[Sample]:
        """Read the samples that were written since the last call, and return them."""
        found = self._samples.new()
        for sample in found:
            (self._answers if sample.is_answer else self._others).append(sample)
        return found

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the responses of the last ten minutes, in no order."""
        begin = time.monotonic() - _SECONDS
        return (sample for sample in chain(self._answers, self._others) if sample.at >= begin)
