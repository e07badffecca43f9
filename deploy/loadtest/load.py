"""A running load, and its start and stop."""

from __future__ import annotations

import asyncio
import socket
import time
from types import TracebackType

from deploy.loadtest.client import Client
from deploy.loadtest.client_classes import CLASSES, Mix
from deploy.loadtest.report import Report
from deploy.loadtest.requests import RequestFactory
from deploy.loadtest.stats import LoadStats, Progress
from deploy.loadtest.validation import ResponseValidator

TIME_LIMIT = 60.0
"""Default limit for each request, in seconds."""
MODEL = "glm-4.6v-flash"
_DELAY_PROBE = 0.02  # seconds between two measurements of the event loop's delay


class Load:
    """A load that runs within `async with`; `stop` returns its report."""

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
        api_key: str | None = None,
    ) -> None:
        """`time_limit` in seconds for each request; `compare=False` permits different texts by one version.

        `think` is the mean pause in seconds of the classes that otherwise send without one: busy, stream, pipelined.
        Raises ValueError for an `api_key` that cannot be sent.
        """
        self.target = f"{host}:{port}"
        self._host, self._port = host, port
        self._mix = mix or Mix()
        self._requests = RequestFactory(host, port, model, api_key)
        self._validator = ResponseValidator(compare=compare)
        self._time_limit = time_limit
        self._think = think
        self._clients: list[Client] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._delay_probe: asyncio.Task[None] | None = None
        self._stats = LoadStats()

    async def __aenter__(self) -> Load:
        """Start every client; raises OSError when the host has no address."""
        address = await _resolve(self._host, self._port)
        self._stats = LoadStats()
        self._delay_probe = asyncio.create_task(self._measure_loop_delay())
        for name, count in self._mix.counts().items():
            stats = self._stats.add(name, count)
            for number in range(count):
                client = Client(
                    address,
                    self._requests,
                    self._validator,
                    stats,
                    seed=f"{name}-{number}",
                    time_limit=self._time_limit,
                    think=self._think,
                )
                self._clients.append(client)
                self._tasks.append(asyncio.create_task(_run_client(name, client)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; after an error the requests in flight are cancelled."""
        if error is not None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._finish()

    def progress(self) -> Progress:
        """Return the counts so far."""
        return self._stats.progress()

    async def stop(self) -> Report:
        """Finish the requests in flight, close every connection, and return the report."""
        await self._finish()
        return self._stats.report(self.target)

    async def _finish(self) -> None:
        for client in self._clients:
            client.stop()
        tasks, self._tasks = self._tasks, []
        self._clients.clear()
        await asyncio.gather(*(task for task in tasks if not task.cancelled()))
        if self._delay_probe is not None:
            self._delay_probe.cancel()
            self._delay_probe = None

    async def _measure_loop_delay(self) -> None:
        while True:
            due = time.monotonic() + _DELAY_PROBE
            await asyncio.sleep(_DELAY_PROBE)
            self._stats.loop_delay = max(self._stats.loop_delay, time.monotonic() - due)


async def run(
    host: str, port: int, *, seconds: float, mix: Mix | None = None, time_limit: float = TIME_LIMIT
) -> Report:
    """Run a load for that many seconds and return its report."""
    async with Load(host, port, mix, time_limit=time_limit) as load:
        await asyncio.sleep(seconds)
        return await load.stop()


async def _run_client(name: str, client: Client) -> None:
    try:
        await CLASSES[name](client)
    finally:
        await client.close()


async def _resolve(host: str, port: int) -> tuple[str, int]:
    """Return one numeric address: trying several would be a retry, and a lookup per connection would add latency."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0]), port
