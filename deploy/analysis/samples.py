"""The samples of a slot: how each response went, read from the rings that its workers write."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploy.host import Host
from service.contract.samples import CLIENT_GONE, Sample, new_samples

__all__ = ["Sample", "Samples"]


@dataclass
class Samples:
    """The responses of one version in a slot, of all its workers; those whose client disconnected are left out.

    Of a worker whose weights were replaced these are the responses since then.
    """

    host: Host
    slot: str
    version: str
    _counts: dict[Path, int] = field(default_factory=dict)

    def new(self) -> list[Sample]:
        """Return the samples that were written since the last call; at the first call those that the rings hold."""
        found: list[Sample] = []
        for path in (self.host.runtime / self.slot).glob("[0-9]*/[0-9]*.samples"):
            samples, self._counts[path] = new_samples(path, self.version, self._counts.get(path, 0))
            found += samples
        return [sample for sample in found if sample.status != CLIENT_GONE]
