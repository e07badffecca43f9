"""What does a request cost beyond plain Starlette on plain Uvicorn?

The same answer of GET /healthz is asked of one worker of a live slot and of a bare Starlette application, in turns. The
ratio of the two is what the handover, the ledger, the metrics and the headers leave of the throughput. A scrape after
1,000 workers have ended is compared with one before, too.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from service.demo_models import tiny
from service.metric_files import Collector, merge_ended
from tests.bench.output import Output, parser
from tests.box import CODE, Box, empty_host, wait_for

CONNECTIONS = 16
TARGET = 0.75
ENDED = 1000
PID_MAX = 1 << 22  # of Linux
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass(frozen=True)
class Server:
    """A server under measurement, and the process that answers."""

    address: str
    pid: int

    @property
    def cpu_seconds(self) -> float:
        """What the process has used so far, without threads that have ended."""
        ran = [path.read_text().split()[0] for path in Path(f"/proc/{self.pid}/task").glob("*/schedstat")]
        return sum(map(int, ran)) / 1e9  # cpu_times() counts in 10 ms


@dataclass(frozen=True)
class Turn:
    """The result of one turn. The cost depends less than the rate on what else the machine does."""

    rate: float
    """Requests per second."""
    cost: float
    """Seconds of CPU time of the server per request."""


async def _healthz(_request: Request) -> JSONResponse:
    return JSONResponse({"status": "alive"})


plain = Starlette(routes=[Route("/healthz", _healthz)])


@contextmanager
def plain_server() -> Iterator[Server]:
    """Serve the bare application with Uvicorn, on the event loop that the worker has too."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        host, port = unused.getsockname()
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "tests.bench.request_cost:plain", "--host", host, "--port", str(port),
         "--http", "httptools", "--loop", "asyncio", "--ws", "none", "--no-access-log", "--log-level", "warning"],
        cwd=CODE,
    )  # fmt: skip
    try:
        yield Server(f"{host}:{port}", process.pid)
    finally:
        process.terminate()
        process.wait(20)


def measure(server: Server, seconds: float) -> Turn:
    """Ask on keep-alive connections without pause, by wrk where it is installed, which takes whole seconds."""
    before, started = server.cpu_seconds, time.monotonic()
    answers = _wrk(server.address, seconds) if shutil.which("wrk") else asyncio.run(_ask(server.address, seconds))
    return Turn(answers / (time.monotonic() - started), (server.cpu_seconds - before) / answers)


def _wrk(address: str, seconds: float) -> int:
    done = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", f"http://{address}/healthz"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not re.search("Non-2xx|Socket errors", done.stdout), done.stdout
    found = re.search(r"(\d+) requests in", done.stdout)
    assert found, done.stdout
    return int(found[1])


async def _ask(address: str, seconds: float) -> int:
    host, port = address.split(":")
    answers = 0
    deadline = time.monotonic() + seconds

    async def client() -> None:
        nonlocal answers
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() < deadline:
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
            answers += 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return answers


@contextmanager
def live_slot() -> Iterator[Box]:
    """Serve 1.0.0 with one worker, which does without a model."""
    with tempfile.TemporaryDirectory() as directory, empty_host("dummy") as box:
        box.configure(threads=1)
        checkpoint = Path(directory) / "1.0.0"
        tiny.make(checkpoint, seed=1, dtype="float32")
        box.stock({"1.0.0": checkpoint})
        box.glmctl("deploy", "1.0.0")
        yield box


def scrape_ratio(metrics: Path, pid: int) -> float:
    """Return how much longer a scrape takes after ENDED workers like this one have ended than before."""

    def seconds() -> float:
        times = []
        for _ in range(20):
            began = time.perf_counter()
            Collector(None, str(directory)).collect()
            times.append(time.perf_counter() - began)
        return median(times)

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        files = list(metrics.glob(f"*_{pid}-*.db"))
        for file in files:
            shutil.copy(file, directory)
        before = seconds()
        for ended in range(PID_MAX + 1, PID_MAX + 1 + ENDED):
            for file in files:
                shutil.copy(file, directory / file.name.replace(f"_{pid}-", f"_{ended}-"))
            merge_ended(directory)
        return seconds() / before


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both in turns, and print the medians and their ratio."""
    options_parser = parser("request_cost", __doc__)
    options_parser.add_argument("--turns", type=int, help="of each server [15, with --quick 3]")
    options_parser.add_argument("--seconds", type=float, help="of one turn [1, with --quick 0.3]")
    options = options_parser.parse_args(argv)
    output = Output.of("request_cost", options)
    number = options.turns or (3 if options.quick else 15)
    seconds = options.seconds or (0.3 if options.quick else 1)
    turns: list[tuple[Turn, Turn]] = []
    with live_slot() as box, plain_server() as plain_one:
        [worker] = box.generation("blue").workers
        slot = Server(box.listen, worker.pid)
        wait_for(lambda: _answers(plain_one))
        for server in (slot, plain_one):
            measure(server, 1)  # warm-up
        scrapes = scrape_ratio(box.host.runtime / "metrics", slot.pid)
        turns += [(measure(slot, seconds), measure(plain_one, seconds)) for _ in range(number)]
    rows: list[tuple[object, ...]] = []
    names = ("one worker of the live slot", "Starlette on Uvicorn")
    for name, found in zip(names, zip(*turns, strict=True), strict=True):
        rate, cost = median(turn.rate for turn in found), 1e6 * median(turn.cost for turn in found)
        rows.append((name, rate, cost))
        output.row("server", server=name, requests_per_second=rate, cpu_us=cost)
    rate, cost = median(a.rate / b.rate for a, b in turns), median(b.cost / a.cost for a, b in turns)
    output.row("ratio", rate=rate, cpu=cost, scrape=scrapes)
    output.table(
        f"{CONNECTIONS} keep-alive connections, {number} turns: medians",
        ("GET /healthz", "requests/s", "CPU µs a request"),
        [*rows, ("ratio", rate, cost)],
        f"target of the ratio: {TARGET}. The server's CPU time depends less on the machine's other load",
    )
    output.note(f"a scrape after {ENDED:,} workers that ended takes {scrapes:.2f} times as long as before")


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"http://{server.address}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
