"""What do the access log and the metrics cost?

Two live slots with one worker each answer the same requests in turns: one as it is installed, one whose access log is
off and whose metrics are functions that do nothing. Both do without a model, so that the parts are those of a server
that costs nothing else for an answer; at the end two others answer with a small model, as a service does.

The turns are short and in the order A B B A, for that the other load of the machine meets both. Each four give one
ratio; the medians are printed. CPU seconds per request depend least on the other load: they are those in which the
worker's threads ran, as the scheduler counts them.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Literal

import httpx

from service.demo_models import tiny
from tests.bench.output import Output, parser
from tests.bench.request_cost import Server, Turn
from tests.box import Box, empty_host

TARGET = 0.03
CLIENTS = 16
SCRAPES = 20
SCRAPE_INTERVAL = 15  # seconds, as in deploy/monitoring/prometheus.yml
WITHOUT = """
from service import metrics

def nothing(*_, **__):
    pass

for name in ("count_request", "count_error", "flush", "set_load_seconds", "set_device"):
    setattr(metrics, name, nothing)
for name, value in vars(metrics.Metrics).items():
    if callable(value) and not name.startswith("_"):
        setattr(metrics.Metrics, name, nothing)
"""


def _post(**more: object) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, **more}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def _read_whole(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))


async def _read_stream(reader: asyncio.StreamReader) -> None:
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await reader.readuntil(b"\r\n0\r\n\r\n")


REQUESTS: dict[str, tuple[bytes, Callable[[asyncio.StreamReader], Coroutine[None, None, None]]]] = {
    "GET /version": (b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n", _read_whole),
    "chat, 8 tokens": (_post(max_tokens=8), _read_whole),
    "chat, 64 tokens, streamed": (_post(max_tokens=64, stream=True), _read_stream),
}


@contextmanager
def live_slot(*, is_measured: bool, engine: Literal["dummy", "model"] = "dummy") -> Iterator[Server]:
    """Serve with one worker, with log and metrics or without both."""
    with tempfile.TemporaryDirectory() as directory, empty_host(engine) as box:
        box.configure(threads=1, access_log=int(is_measured))
        if not is_measured:
            (Path(directory) / "sitecustomize.py").write_text(WITHOUT)
            box.drop_in(f"[Service]\nEnvironment=PYTHONPATH={directory}\n")
        tiny.make(Path(directory) / "1.0.0", seed=1, dtype="float32")
        box.stock({"1.0.0": Path(directory) / "1.0.0"})
        box.glmctl("deploy", "1.0.0")
        yield _server(box)


def _server(box: Box) -> Server:
    [worker] = box.generation("blue").workers
    return Server(box.listen, worker.pid)


async def _ask(server: Server, seconds: float, name: str) -> int:
    """Ask on keep-alive connections without pause; returns the number of answers."""
    request, read = REQUESTS[name]
    host, port = server.address.split(":")
    deadline, answers = time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal answers
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        while True:
            writer.write(request)
            await read(reader)
            answers += 1
            if time.monotonic() >= deadline:
                break
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return answers


def measure(server: Server, seconds: float, name: str) -> Turn:
    """Return the result of one turn."""
    before, began = server.cpu_seconds, time.monotonic()
    answers = asyncio.run(_ask(server, seconds, name))
    return Turn(answers / (time.monotonic() - began), (server.cpu_seconds - before) / answers)


def scrape_cost(server: Server) -> float:
    """Return the seconds of CPU time of a scrape."""
    before = server.cpu_seconds
    with httpx.Client(trust_env=False) as client:
        for _ in range(SCRAPES):
            client.get(f"http://{server.address}/metrics").raise_for_status()
    return (server.cpu_seconds - before) / SCRAPES


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both in turns, and print the medians of the ratios."""
    options_parser = parser("logs_and_metrics", __doc__)
    options_parser.add_argument(
        "--rounds", type=int, help="of four turns each, for each kind of request [20, with --quick 2]"
    )
    options_parser.add_argument("--seconds", type=float, default=0.5, help="of one turn [0.5]")
    options = options_parser.parse_args(argv)
    output = Output.of("logs_and_metrics", options)
    number = options.rounds or (2 if options.quick else 20)
    rows = []

    def compare(on: Server, off: Server, name: str, title: str) -> None:
        for server in (on, off):
            measure(server, 2, name)  # warm-up
        rounds = [[measure(server, options.seconds, name) for server in (on, off, off, on)] for _ in range(number)]
        rows.append(output.row("request", request=title, **_figures(rounds)))

    with live_slot(is_measured=True) as on, live_slot(is_measured=False) as off:
        for name in REQUESTS:
            compare(on, off, name, name)
        scrape = scrape_cost(on)
    with live_slot(is_measured=True, engine="model") as on, live_slot(is_measured=False, engine="model") as off:
        compare(on, off, "chat, 8 tokens", "chat, 8 tokens, small model")
    output.row("scrape", cpu_seconds=scrape)
    show(output, rows, number)
    output.note(
        f"a scrape takes {scrape * 1000:.1f} ms of the worker: {scrape / SCRAPE_INTERVAL:.2%} of a core "
        f"if there is one every {SCRAPE_INTERVAL} s"
    )


def show(output: Output, rows: Sequence[dict[str, Any]], rounds: int) -> None:
    """Print the table."""
    output.table(
        f"access log and metrics, {CLIENTS} keep-alive connections: medians of {rounds} rounds",
        ("", "req/s", "ratio", "CPU µs", "ratio", "quartiles", "target"),
        (
            (row["request"], row["requests_per_second"], f"{row['rate_ratio']:.3f}", row["cpu_us"],
             f"{row['cpu_ratio']:.3f}", "{:.2f}-{:.2f}".format(*row["quartiles"]),
             "reached" if row["cpu_ratio"] <= 1 + TARGET else "missed")
            for row in rows
        ),
        f"ratio: with both / without. Target: at most {TARGET:.0%} of the CPU time and the requests/s",
    )  # fmt: skip


def _figures(rounds: list[list[Turn]]) -> dict[str, Any]:
    """Return the figures of a kind of request; the outer turns of a round are those with log and metrics."""
    rates = [(a.rate + d.rate) / (b.rate + c.rate) for a, b, c, d in rounds]
    costs = sorted((a.cost + d.cost) / (b.cost + c.cost) for a, b, c, d in rounds)
    measured = [turn for turns in rounds for turn in (turns[0], turns[3])]
    return {
        "requests_per_second": median(turn.rate for turn in measured),
        "rate_ratio": median(rates),
        "cpu_us": 1e6 * median(turn.cost for turn in measured),
        "cpu_ratio": median(costs),
        "quartiles": [costs[len(costs) // 4], costs[3 * len(costs) // 4]],
    }


if __name__ == "__main__":
    main()
