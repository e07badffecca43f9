"""How does a switch grow with the number of idle connections, and what does a connection cost?

For each number of workers and of idle connections the live slot changes some times under a small mixed load. Measured:
what is lost, the longest pause of the load, how long the old slot takes to pass on its connections (as the accounts of
its workers count them), and how long until the new slot has all of them. At the end each is asked once. Memory is
the growth of the workers' own pages (USS) from no connection to all of them, by connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from deploy.loadtest import Report
from tests.bench.kept_connections import KeptConnections
from tests.bench.mixed_load import MixedLoad
from tests.bench.output import Output, parser
from tests.bench.peers.ours import Ours
from tests.bench.switching import make_releases
from tests.box import Box

CONNECTIONS, QUICK_CONNECTIONS = (10, 100, 1_000, 10_000), (10, 1_000)
WORKERS, QUICK_WORKERS = (1, 2, 4), (1, 2)
SWITCHES, QUICK_SWITCHES = 5, 2
LIMIT = 30.0  # seconds for a switch
SCALE = 0.25  # of the mixed load: one client of most classes
TARGET = 250.0  # ms until all of 10,000 connections are over
DESCRIPTORS = 2_000  # besides those of the connections


class ManyConnections(Ours):
    """The service with room for all connections, which come from one address."""

    def __init__(self, releases: Path, scratch: Path, *, workers: int) -> None:
        super().__init__(releases, scratch)
        most = 2 * max(CONNECTIONS)
        self.settings = {
            "workers": workers, "max_connections": most, "max_connections_per_address": most, "keep_alive": 600,
        }  # fmt: skip


def memory(box: Box) -> int:
    """Return the bytes that the workers of the live slot have to themselves."""
    assert box.slots.live is not None
    workers = box.generation(box.slots.live).alive_workers
    return sum(int(psutil.Process(worker.pid).memory_full_info().uss) for worker in workers)


async def pass_on(peer: ManyConnections, number: int) -> dict[str, float | None]:
    """Switch once; returns the ms until the old slot has no idle connection more, and until the new one has all.

    Workers write their accounts every 20 ms at most. One that is under way is in neither account, and those of the load
    come on top: the new slot has all when each that the old one has carries a request, and it has as many as are kept.
    """
    old, new = peer.box.slots.live, peer.box.slots.idle
    assert old is not None
    began = time.monotonic()
    peer.switch()
    found: dict[str, float | None] = {"handoff_ms": None, "all_over_ms": None}
    while time.monotonic() < began + LIMIT and None in found.values():
        before = peer.box.generation(old)
        if found["handoff_ms"] is None and before.connections <= before.in_flight:  # streams take a second
            found["handoff_ms"] = 1000 * (time.monotonic() - began)
        elif found["handoff_ms"] is not None and peer.box.generation(new).connections >= number:
            found["all_over_ms"] = 1000 * (time.monotonic() - began)
        await asyncio.sleep(0.002)
    return found


async def measure(peer: ManyConnections, number: int, switches: int) -> dict[str, Any]:
    """Measure one number of connections."""
    before = memory(peer.box)
    with contextlib.ExitStack() as stack:
        async with KeptConnections(peer.address, number) as kept:
            await asyncio.sleep(2)  # all are idle for more than a second, and at rest
            taken = memory(peer.box) - before
            load = stack.enter_context(MixedLoad(peer.address, scale=SCALE))
            times = []
            for _ in range(switches):
                times.append(await pass_on(peer, number))
                await asyncio.sleep(0.5)
            report: Report = await asyncio.to_thread(load.stop)
            versions, lost = await kept.ask()  # so many requests at once would be a pause of the load
            by_old = versions.get(peer.next_version, 0)
        return {
            "switches": switches,
            "lost_connections": lost,
            "answered_by_old": by_old,
            "lost": report.lost,
            "sent": report.sent,
            "longest_pause_ms": report.longest_pause_ms,
            "bytes_per_connection": round(taken / number) if number >= 100 else None,  # less than a page of noise
            "handoff_ms": _largest(times, "handoff_ms"),
            "all_over_ms": _largest(times, "all_over_ms"),
            "all_over_median_ms": median(one["all_over_ms"] or 1000 * LIMIT for one in times),
        }


def _largest(times: Sequence[dict[str, float | None]], name: str) -> float | None:
    """Return the largest; None if one switch did not end within the limit."""
    values = [one[name] for one in times]
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def allowed_connections() -> int:
    """Raise the limit of open files as far as is allowed, and return how many connections it has room for."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard - DESCRIPTORS


def show(output: Output, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    output.table(
        "switches with idle connections",
        ("workers, connections", "lost", "pause ms", "handoff ms", "over, median", "over, max", "bytes each"),
        (
            (f"{row['workers']}, {row['connections']:,}", row["lost"] + row["lost_connections"],
             row["longest_pause_ms"], row["handoff_ms"], row["all_over_median_ms"], row["all_over_ms"],
             row["bytes_per_connection"])
            for row in rows
        ),
        f"over: ms until the new slot has all connections. Target at 10,000: {TARGET:.0f} ms. No cell: not within "
        f"{LIMIT:.0f} s",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all numbers, and print."""
    options_parser = parser("growth", __doc__)
    options_parser.add_argument("--connections", type=int, nargs="+", help="numbers of idle connections", metavar="N")
    options_parser.add_argument("--workers", type=int, nargs="+", help="numbers of workers", metavar="N")
    options = options_parser.parse_args(argv)
    output = Output.of("growth", options)
    numbers = options.connections or (QUICK_CONNECTIONS if options.quick else CONNECTIONS)
    allowed = allowed_connections()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        releases = make_releases(Path(directory))
        for workers in options.workers or (QUICK_WORKERS if options.quick else WORKERS):
            with ManyConnections(releases, Path(directory), workers=workers) as peer:
                for number in numbers:
                    if number > allowed:
                        output.note(f"not measured: {number:,} connections: ulimit -Hn allows {allowed:,}")
                        continue
                    output.progress(f"{workers} workers, {number:,} connections")
                    found = asyncio.run(measure(peer, number, QUICK_SWITCHES if options.quick else SWITCHES))
                    rows.append(output.row("growth", workers=workers, connections=number, **found))
    show(output, rows)


if __name__ == "__main__":
    main()
