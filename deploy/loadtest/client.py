"""One client: its connection, its requests, and the recording of what became of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterable
from itertools import pairwise

from deploy.loadtest.losses import LossKind, RequestLost
from deploy.loadtest.raw_connection import RawConnection
from deploy.loadtest.report import Switch
from deploy.loadtest.requests import Request, RequestFactory
from deploy.loadtest.responses import Response, read_response
from deploy.loadtest.stats import ClassStats
from deploy.loadtest.validation import Origin, ResponseValidator

LOSS_PAUSE = 0.1
"""Seconds between a lost request and the next one of the same client; limits the load on a server that is down."""


class Client:
    """A client with at most one open connection. A lost request is recorded and never sent again."""

    def __init__(
        self,
        address: tuple[str, int],
        requests: RequestFactory,
        validator: ResponseValidator,
        stats: ClassStats,
        *,
        seed: str,
        time_limit: float,
        think: float = 0.0,
    ) -> None:
        """`time_limit` in seconds for each request; `think` is the mean of `pause`, in seconds."""
        self.requests = requests
        self.random = random.Random(seed)  # noqa: S311 - varies the timing, no secret depends on it
        self.stopping = False
        self._think = think
        self._address = address
        self._validator = validator
        self._stats = stats
        self._time_limit = time_limit
        self._connection: RawConnection | None = None
        self._responses = 0
        self._first: Switch | None = None
        self._last: Switch | None = None

    def stop(self) -> None:
        """Finish the requests in flight and begin no others."""
        self.stopping = True
        if self._connection is not None:
            self._connection.wake()

    async def connect(self, *, next_request: Request) -> bool:
        """Open the connection; return False and record `next_request` as lost when that fails."""
        try:
            async with asyncio.timeout(self._time_limit):
                await self._connect()
        except (RequestLost, TimeoutError) as error:
            self._stats.sent += 1
            await self._record_lost([next_request], self._as_loss(error))
        return self._connection is not None

    async def idle(self, low: float, high: float, *, next_request: Request) -> bool:
        """Keep the connection open without sending, for a random time in seconds; return False to end the round.

        When the server ends the connection meanwhile, `next_request` is recorded as lost.
        """
        if self._connection is not None:
            await self._connection.idle(0 if self.stopping else self.random.uniform(low, high))
            try:
                self._connection.expect_quiet()
            except RequestLost as loss:
                self._stats.sent += 1
                await self._record_lost([next_request], loss)
                return False
        return not self.stopping

    async def send(self, *requests: Request, duration: float = 0.0) -> None:
        """Send the requests in one write, or in pieces over `duration` seconds, and record each response."""
        waiting = deque(requests)
        self._stats.sent += len(waiting)
        try:
            async with asyncio.timeout(self._time_limit):
                correct = await self._exchange(waiting, duration)
        except (RequestLost, TimeoutError) as error:
            await self._record_lost(waiting, self._as_loss(error))
        else:
            if not correct:
                await self._pause_after_loss()

    async def pause(self) -> None:
        """Wait for half to one and a half times the think time."""
        if self._think and not self.stopping:
            await asyncio.sleep(self._think * self.random.uniform(0.5, 1.5))

    async def disconnect(self) -> None:
        """Close the connection, if one is open."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._stats.record_pause(connection.longest_wait)
            await connection.close()

    async def close(self) -> None:
        """Disconnect and record the last response."""
        await self.disconnect()
        self._record_last()

    async def _connect(self) -> RawConnection:
        self._responses = 0
        self._connection = await RawConnection.connect(self._address)
        self._stats.connections += 1
        return self._connection

    async def _exchange(self, waiting: deque[Request], duration: float) -> bool:
        """Return whether every response was correct; on RequestLost `waiting` holds the requests without one."""
        correct = True
        started = time.monotonic()
        connection = self._connection or await self._connect()
        connection.expect_quiet()
        sent = await self._write(connection, b"".join(request.raw for request in waiting), duration)
        while waiting:
            response = await read_response(connection)
            if waiting[0].closes:
                await connection.expect_end()
            request = waiting.popleft()
            correct &= self._record_response(request, response, sent, sent if duration else started)
            if response.closes or request.closes:
                self._stats.announced_closes += not request.closes
                await self.disconnect()
                break
        if waiting:
            raise RequestLost(LossKind.CLOSED, "an earlier response announced the end of the connection")
        return correct

    async def _write(self, connection: RawConnection, raw: bytes, duration: float) -> float:
        """Send the bytes and return the time of the last write."""
        if duration:
            *pieces, raw = _pieces(raw)
            for piece in pieces:
                connection.send(piece)
                await connection.idle(0 if self.stopping else duration / len(pieces))
                if not connection.quiet:
                    response = await read_response(connection)
                    detail = f"{response.status} {response.reason} before the request was sent completely"
                    raise RequestLost(LossKind.EARLY, detail)
        sent = time.monotonic()
        connection.send(raw)
        return sent

    def _record_response(self, request: Request, response: Response, sent: float, started: float) -> bool:
        answered = time.monotonic()
        self._responses += 1
        try:
            origin = self._validator.validate(request, response)
        except RequestLost as loss:
            self._stats.record_lost(request.label, loss, self._connection_history())
            return False
        self._stats.record_completed(origin, answered - started)
        self._record_version(origin, sent, answered)
        if self._connection is not None:
            self._stats.record_pause(self._connection.longest_wait)
            self._connection.longest_wait = 0.0
        return True

    async def _record_lost(self, requests: Iterable[Request], loss: RequestLost) -> None:
        for request in requests:
            self._stats.record_lost(request.label, loss, self._connection_history())
        await self.disconnect()
        await self._pause_after_loss()

    async def _pause_after_loss(self) -> None:
        if not self.stopping:
            await asyncio.sleep(LOSS_PAUSE)

    def _as_loss(self, error: RequestLost | TimeoutError) -> RequestLost:
        if isinstance(error, RequestLost):
            return error
        received = self._connection.response_bytes if self._connection is not None else 0
        detail = f"no complete response in {self._time_limit:g} s, {received} bytes received"
        return RequestLost(LossKind.TIMEOUT, detail)

    def _connection_history(self) -> str:
        history = f"{self._responses} responses before on the connection"
        return f"{history}, version of the client's last response {self._last.version}" if self._last else history

    def _record_version(self, origin: Origin, sent: float, answered: float) -> None:
        now = Switch(sent, answered, origin.version)
        if self._last is None or self._last.version != origin.version:
            self._record_last()
            self._stats.switches.append(now)
            self._first = now
        self._last = now

    def _record_last(self) -> None:
        if self._last is not None and self._last is not self._first:
            self._stats.switches.append(self._last)


def _pieces(raw: bytes) -> list[bytes]:
    """Split at four places in the head, where a parser has state to keep, and at six over the whole length."""
    cuts = [20, 45, 70, 95, *(len(raw) * part // 7 for part in range(1, 7))]
    return [raw[start:end] for start, end in pairwise([0, *cuts, len(raw)])]
