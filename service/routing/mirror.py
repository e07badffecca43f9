"""The mirror: a share of the live slot's requests is asked of the candidate too, and what it answers thrown away.

It begins after the client has its answer, never has more than a few requests under way and keeps a bounded number of
bytes; what would be more is dropped. All that is left of a mirrored answer is one sample: how long it took, its
status, and whether it says the same. Nothing here is waited for by a client or by a worker that leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import httpx

from service.contract.samples import ANSWER, BROKEN_OFF, DIFFERENT, EQUAL, MIRRORED, Message, Samples, Stopwatch, pack
from service.routing import compare as answer
from service.routing import timing as echo
from service.routing.ownership import Gate

__all__ = ["Mirror", "Outcome", "Tape"]

AT_ONCE = 2  # requests of one worker that are asked of the candidate at a time
LONGEST_BODY = 8 << 20
LONGEST_ANSWER = 1 << 20
KEPT = 64 << 20  # bytes of all tapes of one worker, of requests that are still being answered too
_PATIENCE = 30.0  # seconds for the candidate, and ten times what the client's own answer took
_SLOWER = 10
_OK, _FULL, _REFUSED, _FAILED = 200, 429, 400, 500

# of this connection, not of the request; the side is chosen
_OWN = frozenset(
    b"connection content-length expect host keep-alive proxy-connection te trailer transfer-encoding upgrade "
    b"x-glm-slot".split()
) | {echo.HEADER}

Outcome = Literal["equal", "different", "not comparable", "failed", "dropped"]
_OUTCOMES: dict[int, Outcome] = {MIRRORED: "not comparable", EQUAL: "equal", DIFFERENT: "different"}

logger = logging.getLogger("gunicorn.error")


class Tape:
    """One request and its answer, kept while they pass between the client and the application."""

    def __init__(self, mirror: Mirror, scope: Message, watch: Stopwatch) -> None:
        self._mirror = mirror
        self._scope = scope
        self._watch = watch
        self._began = time.monotonic()
        self._body = bytearray()
        self._answer = bytearray()
        self._asked = self._answered = False
        self.runs = True

    async def receive(self) -> Message:
        """Let the application read, and keep it."""
        message = await self._watch.receive()
        if message["type"] == "http.request":
            self._keep(self._body, message.get("body", b""), LONGEST_BODY)
            self._asked = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Let the application write, and keep that."""
        await self._watch.send(message)
        if message["type"] == "http.response.body":
            self._keep(self._answer, message.get("body", b""), LONGEST_ANSWER)
            self._answered = not message.get("more_body", False)

    def _keep(self, kept: bytearray, more: bytes, most: int) -> None:
        if not self.runs:
            return
        if len(kept) + len(more) > most or self._mirror.kept + len(more) > KEPT:
            self.stop()
            self._mirror.note("dropped")
            return
        kept += more
        self._mirror.kept += len(more)

    def stop(self) -> None:
        """Keep nothing any more."""
        self._mirror.kept -= len(self._body) + len(self._answer)
        self._body, self._answer = bytearray(), bytearray()
        self.runs = False

    @property
    def is_whole(self) -> bool:
        """Whether a request was received to its end and answered to the end, with no fault of ours."""
        well = self.status < _FAILED and self.status != _FULL
        return self.runs and self._asked and self._answered and well

    @property
    def status(self) -> int:
        """With what it was answered."""
        return self._watch.status or _FAILED

    @property
    def body(self) -> bytes:
        """The request's."""
        return bytes(self._body)

    @property
    def answer(self) -> bytes:
        """The body that the client got."""
        return bytes(self._answer)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The request's, without what belongs to the connection, and the one that says what this is."""
        return [*((name, value) for name, value in self._scope["headers"] if name not in _OWN), (echo.HEADER, b"1")]

    @property
    def is_greedy(self) -> bool:
        """Whether no token was drawn, so that the same model says the same."""
        return bool(self._scope.get("state", {}).get("greedy"))

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self._began


class Mirror:
    """Asks the candidate for one worker; `note` is told what became of each request."""

    def __init__(self, gate: Gate, samples: Samples, note: Callable[[Outcome], None]) -> None:
        self.note = note
        self.kept = 0
        self._gate = gate
        self._samples = samples
        self._asking: set[asyncio.Task[None]] = set()
        self._client: httpx.AsyncClient | None = None
        self._closed = False

    def tape(self, scope: Message, watch: Stopwatch) -> Tape | None:
        """Begin to keep a client's request, if it is one that the toss chose; for most it costs a look at a path."""
        if scope["method"] != "POST" or scope["path"] != ANSWER or self._closed or not self._gate.toss_mirror():
            return None
        return Tape(self, scope, watch) if self._gate.mirror else None

    def play(self, tape: Tape) -> None:
        """Ask the candidate in the background, now that the client's answer has been sent."""
        if not tape.is_whole or self._closed:
            tape.stop()
            return
        door = self._gate.mirror
        if door is None or len(self._asking) >= AT_ONCE:
            tape.stop()
            self.note("dropped")
            return
        asking = asyncio.get_running_loop().create_task(self._ask(tape, door))
        self._asking.add(asking)
        asking.add_done_callback(self._end)

    def follow(self) -> None:
        """Ask nothing more when the mirror is over, or when we are not live any more."""
        if self._asking and self._gate.mirror is None:
            for asking in self._asking:
                asking.cancel()

    async def close(self) -> None:
        """End what is under way; nobody waits for it."""
        self._closed = True
        for asking in self._asking:
            asking.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def _end(self, asking: asyncio.Task[None]) -> None:
        self._asking.discard(asking)
        if asking.cancelled():
            self.note("dropped")
        elif error := asking.exception():
            logger.error("a mirrored request failed here, which its client does not notice", exc_info=error)

    async def _ask(self, tape: Tape, door: Path) -> None:
        status, said = BROKEN_OFF, bytearray()
        patience = _PATIENCE + _SLOWER * tape.seconds
        began = time.monotonic()
        try:
            with suppress(httpx.HTTPError, httpx.StreamError, OSError, TimeoutError):
                async with (
                    asyncio.timeout(patience),
                    self._to(door).stream("POST", ANSWER, content=tape.body, headers=tape.headers) as response,
                ):
                    async for piece in response.aiter_raw():
                        said += piece
                        if len(said) > LONGEST_ANSWER:
                            self.note("dropped")
                            return
                    status = response.status_code
            ended = time.monotonic()
            text, times = echo.split(said)
            # megabytes take a while to read, and meanwhile clients are to be answered
            status, kind, ratio = await asyncio.to_thread(_compare, tape, status, text)
        finally:
            tape.stop()
        self._samples.add(pack(ended, *(times or (ended - began, -1.0)), status, kind, ratio))
        self.note("failed" if _is_failure(status) else _OUTCOMES[kind])

    def _to(self, door: Path) -> httpx.AsyncClient:
        if self._client is None:  # only whoever is live while a candidate is tried needs one
            # a connection for each request, for the door leads to the newest generation; no certificates to read
            limits = httpx.Limits(max_keepalive_connections=0)
            self._client = httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(uds=str(door), verify=False, limits=limits),
                base_url="http://slot",
                timeout=httpx.Timeout(None),
                trust_env=False,
            )
            self._client.headers.clear()
        return self._client


def _compare(tape: Tape, status: int, said: bytes) -> tuple[int, int, float]:
    """Tell the candidate's status, of what kind its sample is, and its length as a part of the live answer's (0: none).

    Texts are compared where both had no choice. A request that was answered and is refused by the candidate differs
    whatever was drawn.
    """
    if status != _OK or tape.status != _OK:
        refused = tape.status == _OK and _REFUSED <= status < _FAILED and status != _FULL
        return status, DIFFERENT if refused else MIRRORED, 0.0
    try:
        ours = answer.read(tape.answer)
    except (ValueError, KeyError, TypeError, AttributeError):
        return status, MIRRORED, 0.0
    try:
        theirs = answer.read(said)
    except (ValueError, KeyError, TypeError, AttributeError):
        return BROKEN_OFF, MIRRORED, 0.0
    ratio = answer.length(theirs) / max(1, answer.length(ours))
    if not tape.is_greedy:
        return status, MIRRORED, ratio
    return status, EQUAL if ours == theirs else DIFFERENT, ratio


def _is_failure(status: int) -> bool:
    return status >= _FAILED or status == _FULL
