"""How an answer went: measured once, around the application, for the ledger, the samples and the metrics.

A mirrored answer carries its times in a trailer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, Protocol

from service.contract.samples import ANSWERED, BROKEN_OFF, CLIENT_GONE, NOT_ANSWERED, Origin, SampleRing

__all__ = [
    "ANSWER_PATHS",
    "CHAT_PATH",
    "KEEP_ALIVE_COMMENT",
    "MIRRORED_HEADER",
    "PROBES",
    "AnswerTimes",
    "Capture",
    "Headers",
    "Message",
    "Receive",
    "ResponseTimer",
    "Send",
    "split_trailer",
]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CHAT_PATH = "/v1/chat/completions"
ANSWER_PATHS = frozenset((CHAT_PATH, "/v1/responses", "/v1/completions"))  # whose times and errors judge a version
PROBES = frozenset(("/healthz", "/health", "/readyz", "/metrics"))
"""Paths that are asked all the time; they are logged and traced if they fail."""
KEEP_ALIVE_COMMENT = b": keep-alive\n\n"  # server-sent; has no content, so it is neither timed nor captured
MIRRORED_HEADER = b"x-glm-mirrored"  # requests the trailer; ignored except on a slot's internal socket
_TRAILER = b"\n: %.6f %.6f\n"  # seconds, and seconds to the first piece or -1; a comment in server-sent events
_TRAILER_PATTERN = re.compile(rb"\n: (\d+\.\d+) (-?\d+\.\d+)\n\Z")
_MAX_TRAILER = 100  # bytes

Headers = list[tuple[bytes, bytes]]


class AnswerTimes(NamedTuple):
    """When an answer was asked of the engine, had a row of it, its first token, and its end; monotonic seconds."""

    asked: float
    row: float
    first: float
    ended: float

    def merge(self, other: AnswerTimes | None) -> AnswerTimes:
        """Return the times of two choices of one answer: from the first that began to the last that ended."""
        if other is None:
            return self
        return AnswerTimes(
            min(self.asked, other.asked),
            min(self.row, other.row),
            min(self.first, other.first),
            max(self.ended, other.ended),
        )

    @property
    def phases(self) -> dict[str, tuple[float, float]]:
        """The begin and the end of waiting for a row, of the prompt up to the first token, and of all further ones."""
        return {
            "queue": (self.asked, self.row),
            "prefill": (self.row, self.first),
            "decode": (self.first, self.ended),
        }


class Capture(Protocol):
    """Receives a copy of the bodies of one request and its answer."""

    def add_request(self, body: bytes, *, complete: bool) -> None:
        """Receive the next piece of the request's body."""

    def add_response(self, body: bytes, *, complete: bool) -> None:
        """Receive the next piece of the answer's body."""


class ResponseTimer:
    """Wraps an application's `receive` and `send`, and records status, completion and times of its answer.

    The time starts with the last byte of the request, so that a slow upload is not included. A client that reads the
    answer slowly is included: this cannot be distinguished from a slow model.

    It is the only wrapper: the server makes it and leaves it in the request's state, as `timer`, where the application
    finds it to set `labels`. They return the headers that the answer gets when it begins.

    `status` may be set while a streamed answer is sent, to that of an error which came too late for the head.

    With `trailer` the answer ends with a line that has the times as measured here. The live slot uses them for mirrored
    answers: times measured there would include the delays that its own model causes.
    """

    __slots__ = (
        *("_began", "_ended", "_first", "_receive", "_send", "_started", "_trailer"),
        *("capture", "complete", "labels", "scope", "status"),
    )

    def __init__(self, scope: Message, receive: Receive, send: Send, *, trailer: bool = False) -> None:
        self.scope = scope
        self._receive, self._send = receive, send
        self._trailer = trailer
        self._began = self._started = self._ended = time.monotonic()
        self._first: float | None = None
        self.status: int | None = None
        self.complete = False  # set by the server, which knows whether the last byte was written
        self.capture: Capture | None = None
        self.labels: Callable[[], Headers] | None = None

    async def receive(self) -> Message:
        """Receive an ASGI message for the application."""
        message = await self._receive()
        if message["type"] == "http.request":
            complete = not message.get("more_body", False)
            if complete and self.status is None:
                self._started = time.monotonic()
            if self.capture:
                self.capture.add_request(message.get("body", b""), complete=complete)
        return message

    async def send(self, message: Message) -> None:
        """Send an ASGI message of the application."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.labels:
                message = {**message, "headers": [*message.get("headers", ()), *self.labels()]}
            await self._send(_without_length(message) if self._trailer else message)
            return
        complete = not message.get("more_body", False)
        body = message.get("body", b"")
        has_content = body != KEEP_ALIVE_COMMENT
        if self._first is None and not complete and body and has_content:
            self._first = time.monotonic()
        if self._trailer and complete:
            message = {**message, "body": body + _TRAILER % self.times()}
        await self._send(message)
        if self.capture and has_content:
            self.capture.add_response(body, complete=complete)

    def times(self) -> tuple[float, float]:
        """Return the seconds until now, and until the first piece of a streamed answer (-1 without one)."""
        return time.monotonic() - self._started, self._first - self._started if self._first is not None else -1.0

    def end(self, *, client_gone: bool) -> None:
        """Note that the application has ended; `client_gone`: the client has disconnected."""
        self._ended = time.monotonic()
        if not self.complete:
            self.status = CLIENT_GONE if client_gone else BROKEN_OFF

    @property
    def seconds(self) -> float:
        """From the head of the request to the end of the answer, once that has come."""
        return self._ended - self._began

    @property
    def span(self) -> tuple[float, float]:
        """The monotonic times of the head of the request and of the end of the answer, once that has come."""
        return self._began, self._ended

    @property
    def first_seconds(self) -> float | None:
        """From the last byte of the request to the first piece of a streamed answer; None without one."""
        return None if self._first is None else self._first - self._started

    def write(self, samples: SampleRing, origin: Origin) -> None:
        """Write the sample of the answer, once it has ended."""
        ended, started = self._ended, self._started
        first = self.first_seconds
        kind = ANSWERED if self.scope["path"] in ANSWER_PATHS else NOT_ANSWERED
        samples.write(ended, ended - started, -1.0 if first is None else first, self.status or 500, kind, 0.0, origin)


def split_trailer(body: bytes | bytearray) -> tuple[bytes, tuple[float, float] | None]:
    """Split a mirrored answer into its body and its times; None if it was cut short or its version sends no times."""
    data = bytes(body)
    found = _TRAILER_PATTERN.search(data, max(0, len(data) - _MAX_TRAILER))
    return (data[: found.start()], (float(found[1]), float(found[2]))) if found else (data, None)


def _without_length(message: Message) -> Message:
    headers = [(name, value) for name, value in message["headers"] if name.lower() != b"content-length"]
    return {**message, "headers": headers}
