"""Status and times of each answer of a worker: a ring buffer in `$RUNTIME/<slot>/<generation>/<pid>.samples`.

The file is mapped and written in place: 8 bytes `glmring3`; the number of samples ever written, uint64, written after
each record; the number of those from before the present version, uint64; that version, 256 bytes padded with zeros;
then 8192 records of 32 bytes, little-endian `<dffHBBfII`, with the fields of Sample. Earlier versions of the service
write `glmring2`, whose records have 24 bytes and no origin.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from service.contract import regular_file
from service.contract.worker_state import WorkerState

__all__ = [
    "ANSWERED",
    "BROKEN_OFF",
    "CLIENT_GONE",
    "DIFFERENT",
    "EQUAL",
    "MIRRORED",
    "UNKNOWN",
    "Origin",
    "Sample",
    "SampleRing",
    "check",
    "new_samples",
]

logger = logging.getLogger("gunicorn.error")

CLIENT_GONE = 499  # as in nginx: the client disconnected before its answer was complete
BROKEN_OFF = 599  # the answer was broken off; for a mirrored request also: there was no answer

NOT_ANSWERED, ANSWERED, MIRRORED, EQUAL, DIFFERENT = range(5)
"""The kinds of samples. NOT_ANSWERED: the request did not use the model; ANSWERED: it did. The others are answers
of the candidate to mirrored requests. MIRRORED: not comparable with the live slot's answer; EQUAL: equal to it;
DIFFERENT: different, or a refusal where the live slot answered."""

_HEADER = struct.Struct("<8sQQ256s")
_RECORD = struct.Struct("<dffHBBfII")
_MAGIC = b"glmring3"
_RECORDS = {_MAGIC: _RECORD, b"glmring2": struct.Struct("<dffHBBf")}
_PINNED = 1  # a flag
_COUNT = slice(8, 16)
_CAPACITY = 8192  # 256 KiB a worker
_SIZE = _HEADER.size + _CAPACITY * _RECORD.size
_MAX_COUNT = 1 << 53
_MAX_NUMBER = 1e12  # of seconds, and of a ratio
_OK, _QUEUE_FULL, _SERVER_ERROR = 200, 429, 500


class Origin(NamedTuple):
    """Where a request came from: hashes, which are equal for equal clients until the next boot; 0 where unknown."""

    address: int = 0
    """Of the client's address; of an IPv6 address the first 64 bits."""
    key: int = 0
    """Of the API key; 0 without one."""
    is_pinned: bool = False
    """Whether the client chose the side that answers, so that the answer tells nothing about the requests of others."""


UNKNOWN = Origin()


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer."""

    at: float
    """The time at which it ended: CLOCK_MONOTONIC, in seconds."""
    seconds: float
    """Seconds from the last byte of the request to the end of the answer."""
    first: float | None
    """Seconds from the last byte of the request to the first piece of a streamed answer."""
    status: int
    kind: int = ANSWERED
    ratio: float | None = None
    """The length of a mirrored answer divided by the live slot's."""
    origin: Origin = UNKNOWN

    @property
    def is_answer(self) -> bool:
        """Whether the model was used."""
        return self.kind >= ANSWERED

    @property
    def is_mirrored(self) -> bool:
        """Whether it is an answer of the candidate to a mirrored request, which no client received."""
        return self.kind >= MIRRORED

    @property
    def agrees(self) -> bool | None:
        """Whether a mirrored answer equals the live slot's; None if the two cannot be compared."""
        return {EQUAL: True, DIFFERENT: False}.get(self.kind) if self.status == _OK else None

    @property
    def is_error(self) -> bool:
        """Whether it counts as an error: 5xx, broken off, queue full, or refused where the live slot answered."""
        return (
            self.status >= _SERVER_ERROR
            or self.status == _QUEUE_FULL
            or (self.kind == DIFFERENT and self.status != _OK)
        )


class SampleRing:
    """Writes the samples of one worker, keeping the last 8192.

    They are those of the version in `state`: after a weight swap the next sample hides the earlier ones.
    """

    def __init__(self, path: Path, state: WorkerState) -> None:
        """Create the file. If that fails (full disk), the error is logged and samples are discarded."""
        self._state = state
        self._version = ""
        self._count = 0
        self._ring: mmap.mmap | None = None
        try:
            with path.open("w+b") as file:
                os.posix_fallocate(file.fileno(), 0, _SIZE)  # else a full tmpfs would raise SIGBUS on a later write
                self._ring = mmap.mmap(file.fileno(), _SIZE)
        except OSError as error:
            path.unlink(missing_ok=True)
            logger.error("cannot write %s, answers are not measured: %s", path, error)  # noqa: TRY400
        else:
            self._begin()

    def add(self, sample: Sample) -> None:
        """Write one sample."""
        first = -1.0 if sample.first is None else sample.first
        self.write(sample.at, sample.seconds, first, sample.status, sample.kind, sample.ratio or 0.0, sample.origin)

    def write(
        self,
        at: float,
        seconds: float,
        first: float,
        status: int,
        kind: int,
        ratio: float = 0.0,
        origin: Origin = UNKNOWN,
    ) -> None:
        """Write the fields of a record, then the count, which never covers a record that is not complete."""
        if self._ring is None:
            return
        if self._version != self._state.version:
            self._begin()
        offset = _HEADER.size + self._count % _CAPACITY * _RECORD.size
        address, key, is_pinned = origin
        flags = _PINNED if is_pinned else 0
        _RECORD.pack_into(self._ring, offset, at, seconds, first, status, kind, flags, ratio, address, key)
        self._count += 1
        self._ring[_COUNT] = self._count.to_bytes(8, "little")

    def _begin(self) -> None:
        """Write a header for the worker's version, whose samples are those from here on."""
        assert self._ring is not None
        self._version = self._state.version
        self._ring[: _HEADER.size] = _HEADER.pack(_MAGIC, self._count, self._count, self._version.encode())


def new_samples(path: Path, version: str, seen: int = 0) -> tuple[list[Sample], int]:
    """Read the samples of `version` written after the first `seen` ones, as far as the ring still holds them.

    Returns them and the new count. A worker that holds another version has none, and neither has a damaged file.
    """
    try:
        count, first, name, record, data = _parse(path)
    except (OSError, ValueError):
        return [], seen
    if name != version.encode():
        return [], seen
    found = (_read(data, record, number % _CAPACITY) for number in range(max(seen, first, count - _CAPACITY), count))
    return [sample for sample in found if sample is not None], count


def check(path: Path) -> None:
    """Raise OSError or ValueError if the file is no ring of samples; one of a worker that has just started is."""
    count, first, _, record, data = _parse(path)
    if any(_read(data, record, number % _CAPACITY) is None for number in range(max(first, count - _CAPACITY), count)):
        raise ValueError("it has samples that no worker writes")


def _parse(path: Path) -> tuple[int, int, bytes, struct.Struct, bytes]:
    """Return the count, the count when the present version began, that version, the format, and the records.

    The count is read before the records: a record that it covers is complete, or was overwritten by a newer one.
    """
    descriptor = regular_file.open_for_reading(path)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        header = file.read(_HEADER.size)
        data = file.read(_SIZE - _HEADER.size)
    if len(header) < _HEADER.size:
        raise ValueError(f"it has {size} bytes, not {_SIZE}")
    magic, count, first, name = _HEADER.unpack(header)
    record = _RECORDS.get(magic, _RECORD)
    if magic not in _RECORDS and any(header):
        raise ValueError("it is no ring of samples")
    expected = _HEADER.size + _CAPACITY * record.size
    if size != expected or len(data) != expected - _HEADER.size:
        raise ValueError(f"it has {size} bytes, not {expected}")
    if not first <= count < _MAX_COUNT:
        raise ValueError("its count is out of range")
    return count, first, name.rstrip(b"\0"), record, data


def _read(data: bytes, record: struct.Struct, place: int) -> Sample | None:
    """Return one sample; None for a record that no worker writes."""
    at, seconds, first, status, kind, flags, ratio, *origin = record.unpack_from(data, place * record.size)
    if kind > DIFFERENT or not all(0 <= number < _MAX_NUMBER for number in (at, seconds, ratio, abs(first))):
        return None
    address, key = origin or (0, 0)
    return Sample(
        at,
        seconds,
        first if first >= 0 else None,
        status,
        kind,
        ratio or None,
        Origin(address, key, bool(flags & _PINNED)),
    )
