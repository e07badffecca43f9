"""Does a canary hit its share, and what does it cost in latency and throughput, compared with no canary?"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from deploy.systemd.sandbox import Sandbox
from service.contract.canary_file import Canary, CanaryFile
from tests.bench.measurement import percentile
from tests.bench.output import Output, parser
from tests.bench.two_versions import prepare
from tests.box import Box

CONNECTIONS = 50
REQUESTS, QUICK_REQUESTS = 10_000, 1_000  # for each share in each turn
SHARES = (0, 1, 10, 25, 50)  # percent
TURNS = 3
REQUEST = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"


async def measure(box: Box, requests: int) -> tuple[list[float], int, int]:
    """Send requests on keep-alive connections; returns latencies in ms, answers of green, and losses."""
    host, port = box.listen.split(":")
    latencies: list[float] = []
    green = lost = 0

    async def client() -> None:
        nonlocal green, lost
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(requests // CONNECTIONS):
            started = time.perf_counter()
            writer.write(REQUEST)
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
            except (OSError, EOFError):
                lost += 1
                reader, writer = await asyncio.open_connection(host, int(port))
                continue
            latencies.append((time.perf_counter() - started) * 1000)
            green += b"x-slot: green" in head
        writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return latencies, green, lost


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all shares in turns, and print."""
    options = parser("canary", __doc__).parse_args(argv)
    output = Output.of("canary", options)
    requests = QUICK_REQUESTS if options.quick else REQUESTS
    latencies: dict[int, list[float]] = defaultdict(list)
    green: dict[int, int] = defaultdict(int)
    lost: dict[int, int] = defaultdict(int)
    with tempfile.TemporaryDirectory() as directory, Sandbox() as sandbox:
        box = Box(sandbox)
        box.configure(threads=1)
        prepare(box, Path(directory))
        for _ in range(TURNS):
            for share in SHARES:
                CanaryFile(box.host.runtime).write(Canary("green", share, 1))
                turn = asyncio.run(measure(box, requests))
                latencies[share] += turn[0]
                green[share] += turn[1]
                lost[share] += turn[2]
    rows = []
    for share in SHARES:
        number, p = TURNS * requests, share / 100
        spread = 258 * math.sqrt(p * (1 - p) / number)  # percent; 2.58 standard deviations are 99 %
        p99 = percentile(latencies[share], 99)
        rows.append(
            output.row(
                "canary",
                share=share,
                candidate=100 * green[share] / number,
                interval=[share - spread, share + spread],
                lost=lost[share],
                p50_ms=percentile(latencies[share], 50),
                p99_ms=p99,
                p99_ratio=p99 / percentile(latencies[0], 99),
                rate_ratio=sum(latencies[0]) / sum(latencies[share]),
            )
        )
    output.table(
        f"canary: GET /version on {CONNECTIONS} keep-alive connections without pause",
        ("share, %", "candidate", "99 % interval", "lost", "p50 ms", "p99 ms", "p99 to\n0 %", "req/s to\n0 %"),
        (
            (str(row["share"]), row["candidate"], "{:.2f} to {:.2f}".format(*row["interval"]), row["lost"],
             row["p50_ms"], row["p99_ms"], row["p99_ratio"], row["rate_ratio"])
            for row in rows
        ),
        "target: p99 at 10 % at most 1.5 times that at 0 %",
    )  # fmt: skip


if __name__ == "__main__":
    main()
