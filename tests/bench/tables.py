"""The results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from rich.table import Table

from tests.bench.figures import Figures, percentile
from tests.bench.questions import Kind
from tests.bench.results import CONTENDERS, OURS, SEQUENTIAL, Results

__all__ = ["all_of"]

CAPTION = (
    "ms. One by one: measured with one client; its rate does not depend on their number, and the wait of a client is "
    "computed from the queue before it. A padded batch gives nothing before it is done. generate's prompts are "
    "prepared before the clock runs; the servers render, tokenize, decode and patch meanwhile."
)


def all_of(results: Results) -> Iterator[Table]:
    """Every table of a run."""
    for kind in get_args(Kind):
        yield _throughput(results, kind)
    yield _streaming(results)
    yield _healthz(results)
    yield _equal(results)
    yield _targets(results)


def _throughput(results: Results, kind: Kind) -> Table:
    table = Table(title=f"{kind}: tokens/s and time to the first token", caption=CAPTION)
    for column in ("clients", "who"):
        table.add_column(column)
    for column in ("tok/s", "to one by one", "TTFT p50", "p99", "ITL p50", "p99", "load, cores"):
        table.add_column(column, justify="right")
    numbers = sorted({clients for who, of, clients in results.turns if of == kind and who == SEQUENTIAL})
    for clients in numbers:
        base = results.together(SEQUENTIAL, kind, clients)
        for who in CONTENDERS:
            if (figures := results.together(who, kind, clients)) and base:
                table.add_row(str(clients), who, *_cells(figures, base), style="bold" if who == OURS else "")
        table.add_section()
    return table


def _cells(figures: Figures, base: Figures) -> Iterator[str]:
    yield f"{figures.rate:.0f}"
    yield f"{figures.rate / base.rate:.2f}"
    for times in (figures.first, figures.gaps):
        for share in (50, 99):
            yield f"{percentile(times, share):.1f}" if times else ""
    yield f"{figures.cpu:.2f}" if figures.cpu else ""


def _streaming(results: Results) -> Table:
    table = Table("clients", "streamed tok/s", "whole tok/s", "streamed to whole", title="the cost of streaming")
    for clients in (1, 16):
        streamed, whole = (results.together(how, "text", clients) for how in ("streamed", "whole"))
        if streamed and whole:
            cells = f"{streamed.rate:.0f}", f"{whole.rate:.0f}", f"{streamed.rate / whole.rate:.3f}"
            table.add_row(str(clients), *cells)
    return table


def _healthz(results: Results) -> Table:
    table = Table("meanwhile", "p50 ms", "p99 ms", "p99 to idle", "max ms", "requests", title="GET /healthz, ours")
    table.caption = "on a keep-alive connection of its own, every 10 ms; target: p99 below 20 ms"
    idle = percentile(results.healthz.get("idle", []), 99)
    for when, took in results.healthz.items():
        p50, p99 = percentile(took, 50), percentile(took, 99)
        table.add_row(when, f"{p50:.2f}", f"{p99:.2f}", f"{p99 / idle:.1f}", f"{max(took):.1f}", str(len(took)))
    return table


def _equal(results: Results) -> Table:
    table = Table("who", "equal", title="answers equal to generate's, word for word, prompts of the same length")
    for who, (equal, of) in results.equal.items():
        table.add_row(who, f"{equal} of {of}")
    return table


def _targets(results: Results) -> Table:
    table = Table("what", "ratio", "each turn", "target", "", title="what was to be reached")
    for one in results.ratios:
        turns = " ".join(f"{value:.3g}" for value in one.runs)
        sign = "≤" if one.at_most else "≥"
        verdict = "[green]reached" if one.reached else "[red]missed"
        table.add_row(one.what, f"{one.value:.3g}", turns, f"{sign} {one.target:g}", verdict)
    return table
