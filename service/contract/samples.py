"""How each answer went: a small ring in a file beside the worker's account, for whoever compares two versions."""

from __future__ import annotations

import logging
import mmap
import os
import struct
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

__all__ = ["ANSWER", "BROKEN_OFF", "CLIENT_GONE", "DIFFERENT", "EQUAL", "MIRRORED", "Samples", "Stopwatch", "pack"]

logger = logging.getLogger("gunicorn.error")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CLIENT_GONE = 499  # nginx's number for a client that left before its answer was complete
BROKEN_OFF = 599  # an answer that began well and did not end; of the candidate, when mirrored, also none at all

_HEAD = struct.Struct("<8sQ")  # magic, samples ever written
_SAMPLE = struct.Struct("<dffHHf")  # ended at, seconds, to the first piece, status, kind, length beside the live one's
_MAGIC = b"glmring1"
_KEPT = 8192  # 192 KiB a worker
ANSWER = "/v1/chat/completions"

MIRRORED, EQUAL, DIFFERENT = 2, 3, 4
"""Kinds of samples beside 0 (the model was not asked) and 1 (it was): the candidate's answer to what the live slot
answered too, not comparable, or the same, or another."""


def pack(at: float, seconds: float, first: float, status: int, kind: int, ratio: float = 0.0) -> bytes:
    """Make one sample. `first` is -1 and `ratio` 0 where there is none."""
    return _SAMPLE.pack(at, seconds, first, status, kind, ratio)


class Stopwatch:
    """Times one answer, from the last byte of its request to its own last byte; stands around the application.

    What a client takes to send its request is not the model's time. What it takes to read the answer is, for nobody
    can tell them apart.
    """

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self._is_answer = scope.get("path") == ANSWER
        self._receive, self._send = receive, send
        self._began = time.monotonic()
        self._first: float | None = None
        self.status: int | None = None
        self.complete = False

    async def receive(self) -> Message:
        """Let the application read; the clock begins again with the end of the request."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False) and self.status is None:
            self._began = time.monotonic()
        return message

    async def send(self, message: Message) -> None:
        """Let the application write."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.complete = not message.get("more_body", False)
            if self._first is None and not self.complete and message.get("body"):
                self._first = time.monotonic()
        await self._send(message)

    def times(self) -> tuple[float, float]:
        """Give the seconds until now and until the first piece, or -1: only an answer that came in pieces has one."""
        return time.monotonic() - self._began, self._first - self._began if self._first is not None else -1.0

    def sample(self, *, client_gone: bool) -> bytes:
        """Pack how it went."""
        status = self.status or 500
        if not self.complete:
            status = CLIENT_GONE if client_gone else BROKEN_OFF
        return pack(time.monotonic(), *self.times(), status, int(self._is_answer))


class Samples:
    """The ring: the last 8192 answers of one worker, oldest overwritten. Readers keep count of what they have seen."""

    def __init__(self, path: Path) -> None:
        self._count = 0
        self._ring: mmap.mmap | None = None
        size = _HEAD.size + _KEPT * _SAMPLE.size
        try:
            with path.open("w+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a page that memory lacks later would be a SIGBUS
                self._ring = mmap.mmap(file.fileno(), size)
        except OSError as error:  # a full disk must not end the service
            logger.error("cannot write %s, answers are not measured: %s", path, error)  # noqa: TRY400
        else:
            _HEAD.pack_into(self._ring, 0, _MAGIC, 0)

    def add(self, sample: bytes) -> None:
        """Write one down; the count last, so that it never covers what is not there yet."""
        if self._ring is None:
            return
        at = _HEAD.size + self._count % _KEPT * _SAMPLE.size
        self._ring[at : at + _SAMPLE.size] = sample
        self._count += 1
        _HEAD.pack_into(self._ring, 0, _MAGIC, self._count)
