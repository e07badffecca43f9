"""The hard load: clients of every kind, an account of every request, and no retry.

It runs while a server's listening socket and connections change hands. Whatever a client would have noticed, a reset,
a refused connection, a close in the middle of an answer, an unexpected status, two models in one answer, is a loss.

    report = await load.run("127.0.0.1", 8000, seconds=10)
    assert report.lost == 0, report.losses
"""

from __future__ import annotations

import asyncio
import socket
import time
from types import TracebackType

from deploy.loadtest.clients import CLASSES, Client, Mix
from deploy.loadtest.dialogue import Judge, Phrasebook
from deploy.loadtest.ledger import Ledger, Progress
from deploy.loadtest.report import ClassReport, Latency, Loss, Report, Switch
from deploy.loadtest.wire import Kind

__all__ = ["ClassReport", "Kind", "Latency", "Load", "Loss", "Mix", "Progress", "Report", "Switch", "run"]

TIME_LIMIT = 60.0
MODEL = "glm-4.6v-flash"


class Load:
    """A running load: started by `async with`, ended by `stop`, which gives the report."""

    def __init__(
        self,
        host: str,
        port: int,
        mix: Mix | None = None,
        *,
        model: str = MODEL,
        time_limit: float = TIME_LIMIT,
        compare: bool = True,
        think: float = 0.0,
    ) -> None:
        """`time_limit` seconds bound each request; `compare=False` lets a version answer one request differently.

        `think` is the mean pause in seconds of the clients that else ask as fast as they can (busy, pipelined, stream).
        """
        self.target = f"{host}:{port}"
        self._host, self._port = host, port
        self._mix = mix or Mix()
        self._phrasebook = Phrasebook(host, port, model)
        self._judge = Judge(compare=compare)
        self._time_limit = time_limit
        self._think = think
        self._clients: list[Client] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._clock: asyncio.Task[None] | None = None
        self._ledger = Ledger()

    async def __aenter__(self) -> Load:
        """Start every client; raises OSError when the host has no address."""
        address = await _resolve(self._host, self._port)
        self._ledger = Ledger()
        self._clock = asyncio.create_task(self._watch_own_lag())
        for name, count in self._mix.counts().items():
            tally = self._ledger.open(name, count)
            for number in range(count):
                client = Client(
                    address,
                    self._phrasebook,
                    self._judge,
                    tally,
                    seed=f"{name}-{number}",
                    time_limit=self._time_limit,
                    think=self._think,
                )
                self._clients.append(client)
                self._tasks.append(asyncio.create_task(_live(name, client)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; after an error without waiting for what is in flight."""
        if error is not None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end()

    def progress(self) -> Progress:
        """Where the load stands now."""
        return self._ledger.progress()

    async def stop(self) -> Report:
        """Finish what is in flight, close every connection, and draw up the report."""
        await self._end()
        return self._ledger.report(self.target)

    async def _end(self) -> None:
        for client in self._clients:
            client.stop()
        tasks, self._tasks = self._tasks, []
        self._clients.clear()
        await asyncio.gather(*(task for task in tasks if not task.cancelled()))
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    async def _watch_own_lag(self) -> None:
        step = 0.02
        while True:
            due = time.monotonic() + step
            await asyncio.sleep(step)
            self._ledger.own_lag = max(self._ledger.own_lag, time.monotonic() - due)


async def run(
    host: str, port: int, *, seconds: float, mix: Mix | None = None, time_limit: float = TIME_LIMIT
) -> Report:
    """Load the server for that long."""
    async with Load(host, port, mix, time_limit=time_limit) as load:
        await asyncio.sleep(seconds)
        return await load.stop()


async def _live(name: str, client: Client) -> None:
    try:
        await CLASSES[name](client)
    finally:
        await client.close()


async def _resolve(host: str, port: int) -> tuple[str, int]:
    """One numeric address, found once: trying several would be a retry, and a look-up per connection a pause."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0]), port
