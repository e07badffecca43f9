"""The classes of clients: each treats its connection in a way that some handover gets wrong."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise

from deploy.loadtest.dialogue import Judge, Origin, Phrasebook, Request
from deploy.loadtest.ledger import Tally
from deploy.loadtest.report import Switch
from deploy.loadtest.wire import Answer, BrokenError, Kind, Wire, read_answer

AFTER_A_LOSS = 0.1
"""Seconds until a client that lost a request goes on with another one, so that a dead server is not hammered."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How many clients of each class."""

    busy: int = 4
    pool: int = 8
    silent: int = 3
    upload: int = 2
    stream: int = 2
    pipelined: int = 2
    one_shot: int = 2
    http10: int = 1

    def __post_init__(self) -> None:
        for name, count in self.counts().items():
            if count < 0:
                raise ValueError(f"{count} {name} clients: a count cannot be negative")

    def counts(self) -> dict[str, int]:
        """The number of clients by the name of their class."""
        return {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}

    def scaled(self, factor: float) -> Mix:
        """Every class multiplied, and kept at one client at least where it had any."""
        return Mix(*(max(1, round(count * factor)) if count else 0 for count in self.counts().values()))


class Client:
    """One client: at most one connection, and its entries in the ledger."""

    def __init__(
        self,
        address: tuple[str, int],
        say: Phrasebook,
        judge: Judge,
        tally: Tally,
        *,
        seed: str,
        time_limit: float,
        think: float = 0.0,
    ) -> None:
        self.say = say
        self.dice = random.Random(seed)  # noqa: S311 - varies the timing, guards nothing
        self.stopping = False
        self._think = think
        self._address = address
        self._judge = judge
        self._tally = tally
        self._time_limit = time_limit
        self._wire: Wire | None = None
        self._answered = 0
        self._first: Switch | None = None
        self._last: Switch | None = None

    def stop(self) -> None:
        """Finish what is in flight and begin nothing more."""
        self.stopping = True
        if self._wire is not None:
            self._wire.wake()

    async def connect(self, *, before: Request) -> bool:
        """Open the connection ahead of its request, which is lost when that fails; whether there is one."""
        try:
            async with asyncio.timeout(self._time_limit):
                await self._connect()
        except (BrokenError, TimeoutError) as error:
            self._tally.sent += 1
            await self._lose([before], self._as_broken(error))
        return self._wire is not None

    async def rest(self, low: float, high: float, *, before: Request) -> bool:
        """Keep the connection open and silent for a random time; whether the client may go on.

        A connection that the server ends meanwhile is a loss, of the request that was to come next.
        """
        if self._wire is not None:
            await self._wire.rest(0 if self.stopping else self.dice.uniform(low, high))
            try:
                self._wire.expect_quiet()
            except BrokenError as broken:
                self._tally.sent += 1
                await self._lose([before], broken)
                return False
        return not self.stopping

    async def ask(self, *requests: Request, over: float = 0.0) -> None:
        """Send the requests in one write, or dribbled over that many seconds, and settle each exactly once."""
        waiting = deque(requests)
        self._tally.sent += len(waiting)
        try:
            async with asyncio.timeout(self._time_limit):
                right = await self._exchange(waiting, over)
        except (BrokenError, TimeoutError) as error:
            await self._lose(waiting, self._as_broken(error))
        else:
            if not right:
                await self._recover()

    async def think(self) -> None:
        """Pause as long as the load was told to, between an answer and the next request."""
        if self._think and not self.stopping:
            await asyncio.sleep(self._think * self.dice.uniform(0.5, 1.5))

    async def hang_up(self) -> None:
        """Close the connection from our side."""
        if self._wire is not None:
            wire, self._wire = self._wire, None
            self._tally.paused(wire.longest_wait)
            await wire.close()

    async def close(self) -> None:
        """Hang up for good, and enter where the last run of answers ended."""
        await self.hang_up()
        self._note_last()

    async def _connect(self) -> Wire:
        self._answered = 0
        self._wire = await Wire.connect(self._address)
        self._tally.connections += 1
        return self._wire

    async def _exchange(self, waiting: deque[Request], over: float) -> bool:
        """Whether all answers were right; raises BrokenError when there is none for what is left in `waiting`."""
        right = True
        started = time.monotonic()
        wire = self._wire or await self._connect()
        wire.expect_quiet()
        sent = await self._send(wire, b"".join(request.raw for request in waiting), over)
        while waiting:
            answer = await read_answer(wire)
            if waiting[0].closes:
                await wire.expect_end()
            request = waiting.popleft()
            right &= self._settle(request, answer, sent, sent if over else started)
            if answer.closes or request.closes:
                self._tally.announced_closes += not request.closes
                await self.hang_up()
                break
        if waiting:
            raise BrokenError(Kind.CLOSED, "an answer before it announced the end of the connection")
        return right

    async def _send(self, wire: Wire, raw: bytes, over: float) -> float:
        if over:
            *pieces, raw = _pieces(raw)
            for piece in pieces:
                wire.send(piece)
                await wire.rest(0 if self.stopping else over / len(pieces))
                if not wire.quiet:
                    answer = await read_answer(wire)
                    raise BrokenError(Kind.EARLY, f"{answer.status} {answer.reason} before the request was whole")
        sent = time.monotonic()
        wire.send(raw)
        return sent

    def _settle(self, request: Request, answer: Answer, sent: float, started: float) -> bool:
        answered = time.monotonic()
        self._answered += 1
        try:
            origin = self._judge.check(request, answer)
        except BrokenError as broken:
            self._tally.settle_lost(request.label, broken, self._history())
            return False
        self._tally.settle_ok(origin, answered - started)
        self._note(origin, sent, answered)
        if self._wire is not None:
            self._tally.paused(self._wire.longest_wait)
            self._wire.longest_wait = 0.0
        return True

    async def _lose(self, requests: deque[Request] | list[Request], broken: BrokenError) -> None:
        for request in requests:
            self._tally.settle_lost(request.label, broken, self._history())
        await self.hang_up()
        await self._recover()

    async def _recover(self) -> None:
        if not self.stopping:
            await asyncio.sleep(AFTER_A_LOSS)

    def _as_broken(self, error: BrokenError | TimeoutError) -> BrokenError:
        if isinstance(error, BrokenError):
            return error
        held = self._wire.held if self._wire is not None else 0
        return BrokenError(Kind.TIMEOUT, f"no whole answer in {self._time_limit:g} s, {held} bytes of it")

    def _history(self) -> str:
        before = f"{self._answered} answers before on the connection"
        return f"{before}, the client's last by {self._last.version}" if self._last else before

    def _note(self, origin: Origin, sent: float, answered: float) -> None:
        now = Switch(sent, answered, origin.version)
        if self._last is None or self._last.version != origin.version:
            self._note_last()
            self._tally.switches.append(now)
            self._first = now
        self._last = now

    def _note_last(self) -> None:
        if self._last is not None and self._last is not self._first:
            self._tally.switches.append(self._last)


def _pieces(raw: bytes) -> list[bytes]:
    """Four cuts within the head, where a parser keeps its state, and six further on."""
    cuts = [20, 45, 70, 95, *(len(raw) * part // 7 for part in range(1, 7))]
    return [raw[start:end] for start, end in pairwise([0, *cuts, len(raw)])]


async def busy(client: Client) -> None:
    """Asks again right after the answer: always at, or close to, a request boundary."""
    number = client.dice.randrange(10)
    while not client.stopping:
        number += 1
        await client.ask(client.say.chat(number // 10) if number % 10 == 0 else client.say.version())
        await client.think()


async def pool(client: Client) -> None:
    """A connection of an idle pool: asks, keeps silent, and expects to be answered on the same connection."""
    while not client.stopping:
        request = client.say.models()
        await client.ask(request)
        await client.rest(0.2, 2.0, before=request)


async def silent(client: Client) -> None:
    """Connects and says nothing for a while: accepted, or still in the backlog, when the handover comes."""
    while not client.stopping:
        request = client.say.version()
        if await client.connect(before=request) and await client.rest(0.3, 1.5, before=request):
            await client.ask(request)
        await client.hang_up()


async def upload(client: Client) -> None:
    """Dribbles head and body: half a request is on the connection when the handover comes."""
    number = client.dice.randrange(100)
    while not client.stopping:
        number += 1
        await client.ask(client.say.chat(number, padding=4096), over=client.dice.uniform(0.5, 2.0))


async def stream(client: Client) -> None:
    """Reads a long answer that is still being written when the handover comes."""
    number = client.dice.randrange(100)
    while not client.stopping:
        number += 1
        await client.ask(client.say.stream(number))
        await client.think()


async def pipelined(client: Client) -> None:
    """Four requests in one write: requests lie unread in the server when an answer is complete."""
    while not client.stopping:
        await client.ask(client.say.version(), client.say.models(), client.say.version(), client.say.models())
        await client.think()


async def one_shot(client: Client) -> None:
    """A connection for each request: meets every state of the listening socket."""
    while not client.stopping:
        await client.ask(client.say.version(close=True))
        await asyncio.sleep(client.dice.uniform(0.002, 0.02))


async def http10(client: Client) -> None:
    """The oldest clients: HTTP/1.0, and the end of the stream ends the answer."""
    while not client.stopping:
        await client.ask(client.say.version(http10=True))
        await asyncio.sleep(client.dice.uniform(0.002, 0.02))


CLASSES: Mapping[str, Callable[[Client], Awaitable[None]]] = {
    "busy": busy,
    "pool": pool,
    "silent": silent,
    "upload": upload,
    "stream": stream,
    "pipelined": pipelined,
    "one-shot": one_shot,
    "http10": http10,
}
