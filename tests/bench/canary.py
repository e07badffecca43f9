"""`make bench`: what a canary costs those who are asked, as ratios to none, in turns within one run."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.systemd.sandbox import Sandbox
from service.contract.canary_file import Canary, CanaryFile
from tests.bench.figures import percentile
from tests.bench.handover import prepared
from tests.box import Box

CONNECTIONS = 50
REQUESTS = 10_000  # for each share in each turn
SHARES = (0, 1, 10, 25, 50)
TURNS = 3
QUESTION = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"


async def ask(box: Box) -> tuple[list[float], int, int]:
    """Ask on connections that stay open; returns ms of each answer, how many were green's, how many were lost."""
    host, port = box.listen.split(":")
    took: list[float] = []
    green = lost = 0

    async def client() -> None:
        nonlocal green, lost
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(REQUESTS // CONNECTIONS):
            began = time.perf_counter()
            writer.write(QUESTION)
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
            except (OSError, EOFError):
                lost += 1
                reader, writer = await asyncio.open_connection(host, int(port))
                continue
            took.append((time.perf_counter() - began) * 1000)
            green += b"x-slot: green" in head
        writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return took, green, lost


def main() -> None:
    """Measure and print."""
    took: dict[int, list[float]] = defaultdict(list)
    green: dict[int, int] = defaultdict(int)
    lost: dict[int, int] = defaultdict(int)
    with tempfile.TemporaryDirectory() as directory, Sandbox() as sandbox:
        box = Box(sandbox)
        box.configure(threads=1)
        prepared(box, Path(directory))
        for _ in range(TURNS):
            for share in SHARES:
                CanaryFile(box.host.runtime).write(Canary("green", share, 1))
                found = asyncio.run(ask(box))
                took[share] += found[0]
                green[share] += found[1]
                lost[share] += found[2]
    table = Table(
        *("share, %", "answered by it, %", "99 % interval", "lost", "p50 ms", "p99 ms", "p99 to none", "req/s to none"),
        title=f"canary: GET /version on {CONNECTIONS} kept connections that never pause",
        caption="target: p99 at 10 % at most 1.5 times that at 0 %",
    )
    for share in SHARES:
        number, p = TURNS * REQUESTS, share / 100
        spread = 258 * math.sqrt(p * (1 - p) / number)
        p99 = percentile(took[share], 99)
        table.add_row(
            str(share),
            f"{100 * green[share] / number:.2f}",
            f"{share - spread:.2f} to {share + spread:.2f}",
            str(lost[share]),
            f"{percentile(took[share], 50):.1f}",
            f"{p99:.1f}",
            f"{p99 / percentile(took[0], 99):.2f}",
            f"{sum(took[0]) / sum(took[share]):.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
