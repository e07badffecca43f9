"""What does it cost to have this service answer, beside plain Uvicorn, and beside a proxy in front of it?

The same application answers the same requests: in plain Uvicorn, in Uvicorn behind nginx, in Uvicorn behind HAProxy, in
this service, and in this service with a canary of 1, 10 and 50 %. Turns are short and alternate, so that the other load
of the machine meets all; each ratio is the median of those of the turns. What the service costs beyond Uvicorn is its
gate, its accounts, its log and its metrics.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from service.contract.canary_file import Canary, CanaryFile
from service.contract.slots import SLOTS
from tests.bench.logs_and_metrics import REQUESTS
from tests.bench.measurement import percentile
from tests.bench.output import Output, parser
from tests.bench.peers.haproxy import HAProxy, HAProxyProxy
from tests.bench.peers.nginx import Nginx, NginxProxy
from tests.bench.peers.ours import Ours
from tests.bench.peers.peer import VERSIONS, Application, Missing, Peer, await_version
from tests.bench.request_cost import Server
from tests.bench.switching import make_releases

TURNS, QUICK_TURNS = 15, 3
SECONDS, QUICK_SECONDS = 0.6, 0.3  # of one turn
CONNECTIONS = 16
SHARES = (1, 10, 50)  # percent
PLAIN, OURS = "plain Uvicorn", "this service"
TARGET = 0.02
KINDS = ("GET /version", "chat, 8 tokens")


@dataclass(frozen=True)
class Turn:
    """The answers of one turn."""

    rate: float
    """Per second."""
    latencies: tuple[float, ...]
    """In ms."""
    cost: float
    """Seconds of CPU time of the system's processes per request. It depends least on the machine's other load."""


@dataclass(frozen=True)
class System:
    """What answers at an address once `begin` was called."""

    name: str
    address: str
    pids: tuple[int, ...]
    """The processes that take part in an answer."""
    begin: Callable[[], object] = lambda: None
    """Called before each turn."""

    def measure(self, kind: str, seconds: float) -> Turn:
        """Return the result of one turn."""
        before, began = self._cpu_seconds, time.perf_counter()
        latencies = asyncio.run(ask(self.address, kind, seconds))
        elapsed = time.perf_counter() - began
        return Turn(len(latencies) / elapsed, latencies, (self._cpu_seconds - before) / len(latencies))

    @property
    def _cpu_seconds(self) -> float:
        return sum(Server(self.address, pid).cpu_seconds for pid in self.pids)


async def ask(address: str, kind: str, seconds: float) -> tuple[float, ...]:
    """Ask on keep-alive connections without pause, at least once on each; returns the latencies in ms."""
    request, read = REQUESTS[kind]
    host, port = address.split(":")
    began = time.perf_counter()
    latencies: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        is_first = True
        while (sent := time.perf_counter()) < began + seconds or is_first:
            is_first = False
            writer.write(request)
            await read(reader)
            latencies.append(1000 * (time.perf_counter() - sent))
        writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return tuple(latencies)


def compare(turns: dict[str, list[Turn]], base: str) -> Iterator[dict[str, Any]]:
    """Yield the figures of each system, with the median of its turns' ratios to those of `base`."""
    for name, found in turns.items():
        latencies = [latency for turn in found for latency in turn.latencies]
        bases = turns[base]
        yield {
            "system": name,
            "turns": len(found),
            "requests_per_second": median(turn.rate for turn in found),
            "rate_ratio": median(turn.rate / other.rate for turn, other in zip(found, bases, strict=True)),
            "p50_ms": percentile(latencies, 50),
            "p99_ms": percentile(latencies, 99),
            "p50_ratio": median(
                percentile(turn.latencies, 50) / percentile(other.latencies, 50)
                for turn, other in zip(found, bases, strict=True)
            ),
            "cpu_us": 1e6 * median(turn.cost for turn in found),
            "cpu_ratio": median(turn.cost / other.cost for turn, other in zip(found, bases, strict=True)),
        }


class _Proxy(Peer):
    """A proxy alone, before an application that is measured without it, too."""

    def __init__(self, kind: type[Peer], scratch: Path, backend: str) -> None:
        super().__init__(scratch, scratch)
        self._kind, self._backend = kind, backend
        self.name = kind.name.split()[0]

    def versions(self) -> str:
        return self._kind.versions(self)

    def start(self, stack: ExitStack) -> None:
        process = NginxProxy(self, self._backend) if self._kind is Nginx else HAProxyProxy(self, {self._backend: 100})
        stack.callback(process.end)
        await_version(self.address, VERSIONS[0], process)
        self.pids = (process.pid, *(child.pid for child in psutil.Process(process.pid).children()))

    def switch(self) -> None:
        raise NotImplementedError


@contextmanager
def systems(scratch: Path, output: Output) -> Iterator[list[System]]:
    """Start all that can be measured on this machine."""
    releases = make_releases(scratch / "releases")
    proxies: tuple[type[Peer], ...] = (Nginx, HAProxy)
    with ExitStack() as stack:
        application = Application(releases / VERSIONS[0], scratch)
        stack.callback(application.end)
        application.await_ready()
        found = [System(PLAIN, application.address, (application.pid,))]
        for kind in proxies:
            directory = scratch / kind.__name__
            directory.mkdir()
            proxy = _Proxy(kind, directory, application.address)
            try:
                output.progress(proxy.versions())
            except Missing as missing:
                output.row("skipped", peer=proxy.name, why=str(missing))
                output.note(f"not measured: {missing}")
                continue
            stack.enter_context(proxy)
            found.append(System(f"{proxy.name} before it", proxy.address, (application.pid, *proxy.pids)))
        ours = stack.enter_context(Ours(releases, scratch))
        live, warm = (tuple(one.pid for one in ours.box.generation(slot).alive_workers) for slot in SLOTS)
        canary = CanaryFile(ours.box.host.runtime)
        found.append(System(OURS, ours.address, live, canary.remove))
        found += [
            System(f"canary of {share} %", ours.address, live + warm, partial(canary.write, Canary("green", share, 1)))
            for share in SHARES
        ]
        yield found


def show(output: Output, rows: Sequence[dict[str, Any]]) -> None:
    """Print a table for each kind of request."""
    for kind in dict.fromkeys(row["request"] for row in rows):
        output.table(
            f"{kind}, {CONNECTIONS} keep-alive connections",
            ("", "requests/s", "to Uvicorn", "p50 ms", "p99 ms", "CPU µs", "to Uvicorn"),
            (
                (row["system"], row["requests_per_second"], row["rate_ratio"], row["p50_ms"], row["p99_ms"],
                 row["cpu_us"], row["cpu_ratio"])
                for row in rows
                if row["request"] == kind
            ),
            "CPU: of the processes that answer, per request; a canary's has both slots. Target of this service: "
            f"{1 - TARGET:.2f} of the requests/s, {1 + TARGET:.2f} of the CPU time",
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all in turns, and print."""
    options_parser = parser("steady", __doc__)
    options_parser.add_argument("--turns", type=int, help=f"of each system [{TURNS}, with --quick {QUICK_TURNS}]")
    options = options_parser.parse_args(argv)
    output = Output.of("steady", options)
    number = options.turns or (QUICK_TURNS if options.quick else TURNS)
    seconds = QUICK_SECONDS if options.quick else SECONDS
    rows = []
    with tempfile.TemporaryDirectory() as directory, systems(Path(directory), output) as found:
        for kind in KINDS:
            turns: dict[str, list[Turn]] = {system.name: [] for system in found}
            for turn in range(-1, number):  # the first one warms up
                for system in found if turn % 2 else reversed(found):
                    system.begin()
                    time.sleep(0.05)  # the gate reads files every 20 ms
                    measured = system.measure(kind, seconds)
                    if turn >= 0:
                        turns[system.name].append(measured)
            output.progress(f"{kind}: {number} turns of {len(found)} systems")
            rows += [output.row("steady", request=kind, **figures) for figures in compare(turns, PLAIN)]
    show(output, rows)


if __name__ == "__main__":
    main()
