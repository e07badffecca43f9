"""How each answer went: a ring of samples in `$RUNTIME/<slot>/<generation>/<pid>.samples`, mapped and written in place.

8 bytes `glmring1`, uint64 number of samples ever written (written last), then 8192 records of 24 bytes, little-endian
`<dffHHf`: see Sample for the fields.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ANSWERED",
    "BROKEN_OFF",
    "CLIENT_GONE",
    "DIFFERENT",
    "EQUAL",
    "MIRRORED",
    "Sample",
    "SampleRing",
    "new_samples",
]

logger = logging.getLogger("gunicorn.error")

CLIENT_GONE = 499  # nginx's number for a client that disconnected before its answer was complete
BROKEN_OFF = 599  # an answer that was broken off; of a mirrored request also no answer at all

NOT_ANSWERED, ANSWERED, MIRRORED, EQUAL, DIFFERENT = range(5)
"""Kinds: the model was not used; it was. The others are the candidate's answers to mirrored requests: not comparable;
the same as the live slot's; a different one, or refused where the live slot's was not."""

_HEADER = struct.Struct("<8sQ")
_RECORD = struct.Struct("<dffHHf")
_MAGIC = b"glmring1"
_CAPACITY = 8192  # 192 KiB a worker
_OK, _QUEUE_FULL, _SERVER_ERROR = 200, 429, 500


@dataclass(frozen=True)
class Sample:
    """One answer."""

    at: float
    """When it ended: CLOCK_MONOTONIC, in seconds."""
    seconds: float
    """From the last byte of the request to the end of the answer."""
    first: float | None
    """Seconds from the last byte of the request to the first piece of a streamed answer."""
    status: int
    kind: int = ANSWERED
    ratio: float | None = None
    """The length of a mirrored answer divided by the live slot's."""

    @property
    def is_answer(self) -> bool:
        """Whether the model was used."""
        return self.kind >= ANSWERED

    @property
    def is_mirrored(self) -> bool:
        """Whether it is the candidate's answer to a mirrored request, which no client received."""
        return self.kind >= MIRRORED

    @property
    def agrees(self) -> bool | None:
        """Whether a mirrored greedy answer equals the live slot's; None where the two cannot be compared."""
        return {EQUAL: True, DIFFERENT: False}.get(self.kind) if self.status == _OK else None

    @property
    def is_error(self) -> bool:
        """Whether the server failed the client: 5xx, broken off, queue full, refused where the live slot answered."""
        return (
            self.status >= _SERVER_ERROR
            or self.status == _QUEUE_FULL
            or (self.kind == DIFFERENT and self.status != _OK)
        )


class SampleRing:
    """Writes the last 8192 samples of one worker, overwriting the oldest."""

    def __init__(self, path: Path) -> None:
        """Create the file. A failure (full disk) is logged, and nothing is measured then."""
        size = _HEADER.size + _CAPACITY * _RECORD.size
        self._count = 0
        self._ring: mmap.mmap | None = None
        try:
            with path.open("w+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a page that memory lacks later would be a SIGBUS
                self._ring = mmap.mmap(file.fileno(), size)
        except OSError as error:
            logger.error("cannot write %s, answers are not measured: %s", path, error)  # noqa: TRY400
        else:
            _HEADER.pack_into(self._ring, 0, _MAGIC, 0)

    def add(self, sample: Sample) -> None:
        """Write one sample, then the count, which never covers a record that is not complete."""
        if self._ring is None:
            return
        first = -1.0 if sample.first is None else sample.first
        offset = _HEADER.size + self._count % _CAPACITY * _RECORD.size
        _RECORD.pack_into(
            self._ring, offset, sample.at, sample.seconds, first, sample.status, sample.kind, sample.ratio or 0.0
        )
        self._count += 1
        _HEADER.pack_into(self._ring, 0, _MAGIC, self._count)


def new_samples(path: Path, seen: int) -> tuple[list[Sample], int]:
    """Read the samples written after the first `seen` ones, as far as the ring still holds them, and the new count."""
    try:
        data = path.read_bytes()
    except OSError:
        return [], seen
    if len(data) < _HEADER.size or data[: len(_MAGIC)] != _MAGIC:
        return [], seen
    _, count = _HEADER.unpack_from(data)
    capacity = (len(data) - _HEADER.size) // _RECORD.size
    return [_read(data, number % capacity) for number in range(max(seen, count - capacity), count)], count


def _read(data: bytes, place: int) -> Sample:
    at, seconds, first, status, kind, ratio = _RECORD.unpack_from(data, _HEADER.size + place * _RECORD.size)
    return Sample(at, seconds, first if first >= 0 else None, status, kind, ratio or None)
