"""The mirror: sends a copy of some of the live slot's requests to the candidate, and discards the answers.

A copy is sent after the client's answer. A worker has at most MAX_IN_FLIGHT copies in flight and MAX_CAPTURED bytes in
memory; requests beyond that are not mirrored. The result of a copy is one sample: status, times, and whether the answer
equals the live slot's. Neither clients nor a worker that leaves wait for copies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from service.contract.samples import BROKEN_OFF, DIFFERENT, EQUAL, MIRRORED, Origin, Sample, SampleRing
from service.http_client import httpx
from service.routing.compare import compare, is_failure
from service.routing.origin import origin_of
from service.routing.ownership import Gate
from service.timing import CHAT_PATH, MIRRORED_HEADER, Message, ResponseTimer, split_trailer

__all__ = ["CapturedExchange", "Mirror", "MirrorOutcome"]

MAX_IN_FLIGHT = 2  # copies of one worker
MAX_REQUEST = 8 << 20  # bytes of the body
MAX_ANSWER = 1 << 20  # bytes of the body
MAX_CAPTURED = 64 << 20  # bytes of all captured exchanges of one worker
_TIMEOUT = 30.0  # seconds for the candidate's answer; added to it:
_TIMEOUT_FACTOR = 10  # times the duration of the client's own answer

# not copied: headers of the connection, and the pinned side
_CONNECTION_HEADERS = frozenset(
    b"connection content-length expect host keep-alive proxy-connection te trailer transfer-encoding upgrade "
    b"x-glm-slot".split()
) | {MIRRORED_HEADER}

MirrorOutcome = Literal["equal", "different", "not comparable", "failed", "dropped"]
_OUTCOMES: dict[int, MirrorOutcome] = {MIRRORED: "not comparable", EQUAL: "equal", DIFFERENT: "different"}

logger = logging.getLogger("gunicorn.error")


class CapturedExchange:
    """A copy of one request and its answer."""

    def __init__(self, mirror: Mirror, scope: Message, timer: ResponseTimer) -> None:
        self._mirror = mirror
        self._scope = scope
        self._timer = timer
        self._started = time.monotonic()
        self._request = bytearray()
        self._answer = bytearray()
        self._has_request = self._has_answer = False
        self._discarded = False

    def add_request(self, body: bytes, *, complete: bool) -> None:
        """Append a piece of the request's body; discards the exchange beyond a limit."""
        self._append(self._request, body, MAX_REQUEST)
        self._has_request = complete

    def add_response(self, body: bytes, *, complete: bool) -> None:
        """Append a piece of the answer's body; discards the exchange beyond a limit."""
        self._append(self._answer, body, MAX_ANSWER)
        self._has_answer = complete

    def _append(self, body: bytearray, piece: bytes, limit: int) -> None:
        if self._discarded:
            return
        if len(body) + len(piece) > limit or self._mirror.captured + len(piece) > MAX_CAPTURED:
            self.discard()
            self._mirror.count("dropped")
            return
        body += piece
        self._mirror.captured += len(piece)

    def discard(self) -> None:
        """Release the memory, and ignore further pieces."""
        self._mirror.captured -= len(self._request) + len(self._answer)
        self._request, self._answer = bytearray(), bytearray()
        self._discarded = True

    @property
    def is_complete(self) -> bool:
        """Whether the whole request and the whole answer were captured, and the answer is no failure."""
        return not self._discarded and self._has_request and self._has_answer and not is_failure(self.status)

    @property
    def status(self) -> int:
        """The status of the client's answer."""
        return self._timer.status or 500

    @property
    def request(self) -> bytes:
        """The body of the request."""
        return bytes(self._request)

    @property
    def answer(self) -> bytes:
        """The body of the client's answer."""
        return bytes(self._answer)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The request's headers without those of its connection, and MIRRORED_HEADER."""
        headers = [(name, value) for name, value in self._scope["headers"] if name not in _CONNECTION_HEADERS]
        return [*headers, (MIRRORED_HEADER, b"1")]

    @property
    def origin(self) -> Origin:
        """The client that sent the request."""
        return origin_of(self._scope)

    @property
    def is_greedy(self) -> bool:
        """Whether no token was sampled, so that equal models give equal answers."""
        return bool(self._scope.get("state", {}).get("greedy"))

    @property
    def seconds(self) -> float:
        """Seconds since the request began."""
        return time.monotonic() - self._started


class Mirror:
    """Sends the copies of one worker; `count` is called with the outcome of each."""

    def __init__(self, gate: Gate, samples: SampleRing, count: Callable[[MirrorOutcome], None]) -> None:
        self.count = count
        self.captured = 0
        self._gate = gate
        self._samples = samples
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: httpx.AsyncClient | None = None
        self._closed = False

    def capture(self, scope: Message, timer: ResponseTimer) -> CapturedExchange | None:
        """Capture a request and its answer if the request is picked to be mirrored; else return None."""
        if scope["method"] != "POST" or scope["path"] != CHAT_PATH or self._closed or not self._gate.pick_mirrored():
            return None
        if self._gate.mirror is None:
            return None
        timer.capture = exchange = CapturedExchange(self, scope, timer)
        return exchange

    def replay(self, exchange: CapturedExchange) -> None:
        """Send the copy in the background; called after the client's answer was sent."""
        if not exchange.is_complete or self._closed:
            exchange.discard()
            return
        candidate = self._gate.mirror
        if candidate is None or len(self._tasks) >= MAX_IN_FLIGHT:
            exchange.discard()
            self.count("dropped")
            return
        task = asyncio.get_running_loop().create_task(self._send(exchange, candidate))
        self._tasks.add(task)
        task.add_done_callback(partial(self._end, exchange))

    def follow(self) -> None:
        """Cancel the copies in flight if the mirror has ended, or this generation is not live any more."""
        if self._tasks and self._gate.mirror is None:
            for task in self._tasks:
                task.cancel()

    async def close(self) -> None:
        """Cancel the copies in flight, and send no more."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def _end(self, exchange: CapturedExchange, task: asyncio.Task[None]) -> None:
        exchange.discard()  # here and not in the task: one that is cancelled before its first step runs none of it
        self._tasks.discard(task)
        if task.cancelled():
            self.count("dropped")
        elif error := task.exception():
            logger.error("cannot mirror a request; its client was answered", exc_info=error)

    async def _send(self, exchange: CapturedExchange, candidate: Path) -> None:
        status, body = BROKEN_OFF, bytearray()
        timeout = _TIMEOUT + _TIMEOUT_FACTOR * exchange.seconds
        started = time.monotonic()
        with suppress(httpx.HTTPError, httpx.StreamError, OSError, TimeoutError):
            async with (
                asyncio.timeout(timeout),
                self._client_of(candidate).stream(
                    "POST", CHAT_PATH, content=exchange.request, headers=exchange.headers
                ) as response,
            ):
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > MAX_ANSWER:
                        self.count("dropped")
                        return
                status = response.status_code
        ended = time.monotonic()
        text, times = split_trailer(body)
        # in a thread, because parsing megabytes of JSON would delay requests of clients
        result = await asyncio.to_thread(
            compare, (exchange.status, exchange.answer), (status, text), greedy=exchange.is_greedy
        )
        seconds, first = times or (ended - started, -1.0)
        self._samples.add(
            Sample(
                ended,
                seconds,
                first if first >= 0 else None,
                result.status,
                result.kind,
                result.ratio or None,
                exchange.origin,
            )
        )
        self.count("failed" if is_failure(result.status) else _OUTCOMES[result.kind])

    def _client_of(self, candidate: Path) -> httpx.AsyncClient:
        if self._client is None:  # created at the first use: most workers never mirror
            # A connection for each copy, because the path may lead to a newer generation later; verify=False saves the
            # loading of certificates.
            limits = httpx.Limits(max_keepalive_connections=0)
            self._client = httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(uds=str(candidate), verify=False, limits=limits),
                base_url="http://slot",
                timeout=httpx.Timeout(None),
                trust_env=False,
            )
            self._client.headers.clear()
        return self._client
