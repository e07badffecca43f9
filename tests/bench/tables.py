"""The tables of the engine's benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from rich.table import Table

from tests.bench.measurement import Measurement, percentile
from tests.bench.prompts import Kind
from tests.bench.results import SEQUENTIAL, SERVICE, SYSTEMS, Results

__all__ = ["all_tables"]

CAPTION = (
    "Times in ms. One by one: measured with one client; the rate does not depend on the number of clients, and their "
    "wait in the queue is computed. A padded batch has no token before it is done. The prompts of generate are "
    "prepared before the clock runs; the servers render, tokenize, decode and patch while it runs."
)


def all_tables(results: Results) -> Iterator[Table]:
    """Yield the tables of a run."""
    for kind in get_args(Kind):
        yield _throughput(results, kind)
    yield _streaming(results)
    yield _healthz(results)
    yield _equal(results)
    yield _targets(results)


def _throughput(results: Results, kind: Kind) -> Table:
    table = Table(title=f"{kind}: tokens/s and time to the first token", caption=CAPTION)
    for column in ("clients", "system"):
        table.add_column(column)
    for column in ("tok/s", "to one by one", "TTFT p50", "p99", "ITL p50", "p99", "load, cores"):
        table.add_column(column, justify="right")
    numbers = sorted({clients for system, of, clients in results.turns if of == kind and system == SEQUENTIAL})
    for clients in numbers:
        base = results.together(SEQUENTIAL, kind, clients)
        for system in SYSTEMS:
            if (measurement := results.together(system, kind, clients)) and base:
                style = "bold" if system == SERVICE else ""
                table.add_row(str(clients), system, *_cells(measurement, base), style=style)
        table.add_section()
    return table


def _cells(measurement: Measurement, base: Measurement) -> Iterator[str]:
    yield f"{measurement.rate:.0f}"
    yield f"{measurement.rate / base.rate:.2f}"
    for times in (measurement.first, measurement.gaps):
        for share in (50, 99):
            yield f"{percentile(times, share):.1f}" if times else ""
    yield f"{measurement.cpu:.2f}" if measurement.cpu else ""


def _streaming(results: Results) -> Table:
    table = Table("clients", "streamed tok/s", "whole tok/s", "streamed to whole", title="streamed and whole answers")
    for clients in (1, 16):
        streamed, whole = (results.together(system, "text", clients) for system in ("streamed", "whole"))
        if streamed and whole:
            cells = f"{streamed.rate:.0f}", f"{whole.rate:.0f}", f"{streamed.rate / whole.rate:.3f}"
            table.add_row(str(clients), *cells)
    return table


def _healthz(results: Results) -> Table:
    table = Table("load", "p50 ms", "p99 ms", "p99 to idle", "max ms", "requests", title="GET /healthz, this service")
    table.caption = "on a keep-alive connection of its own, every 10 ms; target: p99 below 20 ms"
    idle = percentile(results.healthz.get("idle", []), 99)
    for during, times in results.healthz.items():
        p50, p99 = percentile(times, 50), percentile(times, 99)
        table.add_row(during, f"{p50:.2f}", f"{p99:.2f}", f"{p99 / idle:.1f}", f"{max(times):.1f}", str(len(times)))
    return table


def _equal(results: Results) -> Table:
    table = Table("system", "equal", title="answers equal to those of generate in text and prompt length")
    for system, (equal, total) in results.equal.items():
        table.add_row(system, f"{equal} of {total}")
    return table


def _targets(results: Results) -> Table:
    table = Table("ratio of", "ratio", "each turn", "target", "", title="targets")
    for ratio in results.ratios:
        turns = " ".join(f"{value:.3g}" for value in ratio.runs)
        sign = "≤" if ratio.at_most else "≥"
        verdict = "[green]reached" if ratio.reached else "[red]missed"
        table.add_row(ratio.what, f"{ratio.value:.3g}", turns, f"{sign} {ratio.target:g}", verdict)
    return table
