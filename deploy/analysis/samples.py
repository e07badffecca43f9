"""How each answer of a slot went, read from the rings that its workers write."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from deploy.host import Host
from deploy.journal.accounts import generations

__all__ = ["Sample", "Samples"]

_HEAD = struct.Struct("<8sQ")
_SAMPLE = struct.Struct("<dffHHf")
_MAGIC = b"glmring1"
_OK, _CLIENT_GONE = 200, 499

MIRRORED, EQUAL, DIFFERENT = 2, 3, 4


@dataclass(frozen=True)
class Sample:
    """One answer. Times are in seconds; `at` is CLOCK_MONOTONIC, which all processes of a host share."""

    at: float
    seconds: float
    first: float | None
    """From the request to the first piece of an answer that came in pieces."""
    status: int
    kind: int = 1
    """0: the model was not asked; 1: it was; from 2: the live slot asked the candidate what it had answered itself."""
    ratio: float | None = None
    """The length of a mirrored answer as a part of the live slot's."""

    @property
    def is_answer(self) -> bool:
        """Whether the model was asked."""
        return self.kind >= 1

    @property
    def is_mirrored(self) -> bool:
        """Whether it is the candidate's answer to a request that the live slot answered, thrown away."""
        return self.kind >= MIRRORED

    @property
    def agrees(self) -> bool | None:
        """Whether a mirrored answer says the same; None where it need not, for tokens were drawn, or says nothing."""
        return {EQUAL: True, DIFFERENT: False}.get(self.kind) if self.status == _OK else None

    @property
    def is_error(self) -> bool:
        """Whether the client was not served, or would not have been, by a fault of ours.

        An error, an answer broken off, no place in the queue, or a refusal of what the live slot answered.
        """
        return self.status >= 500 or self.status == 429 or (self.kind == DIFFERENT and self.status != _OK)


@dataclass
class _Ring:
    path: Path
    seen: int = 0

    def new(self) -> list[Sample]:
        """Read what was written since the last call, as far as the ring still holds it."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return []
        if len(data) < _HEAD.size or data[:8] != _MAGIC:
            return []
        _, count = _HEAD.unpack_from(data)
        kept = (len(data) - _HEAD.size) // _SAMPLE.size
        begin, self.seen = max(self.seen, count - kept), count
        return [self._at(data, number % kept) for number in range(begin, count)]

    def _at(self, data: bytes, place: int) -> Sample:
        at, seconds, first, status, kind, ratio = _SAMPLE.unpack_from(data, _HEAD.size + place * _SAMPLE.size)
        return Sample(at, seconds, first if first >= 0 else None, status, kind, ratio or None)


@dataclass
class Samples:
    """The answers that `version` gave in a slot, whichever worker gave them; those whose client left are left out."""

    host: Host
    slot: str
    version: str
    _rings: dict[Path, _Ring] = field(default_factory=dict)

    def new(self) -> list[Sample]:
        """Read what has come since the last call; at the first, what the rings still hold."""
        found: list[Sample] = []
        for one in generations(self.host, self.slot):
            if one.version == self.version:
                for path in (self.host.runtime / self.slot / str(one.generation)).glob("[0-9]*.samples"):
                    found += self._rings.setdefault(path, _Ring(path)).new()
        return [sample for sample in found if sample.status != _CLIENT_GONE]
