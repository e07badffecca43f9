"""The tables of the engine's benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from tests.bench.measurement import Measurement, percentile
from tests.bench.output import Output
from tests.bench.prompts import Kind
from tests.bench.results import SEQUENTIAL, SYSTEMS, Results

__all__ = ["show"]

CAPTION = (
    "Times in ms; load: cores. One by one: measured with one client; the rate does not depend on their number, "
    "and the wait in the queue is computed. A padded batch has no token before it is done. The prompts of generate "
    "are prepared before the clock runs; the servers render, tokenize, decode and patch while it runs."
)


def show(output: Output, results: Results) -> None:
    """Print the tables of a run."""
    for kind in get_args(Kind):
        output.table(
            f"{kind}: tokens/s and time to the first token",
            ("clients, system", "tok/s", "to one\nby one", "TTFT\np50", "TTFT\np99", "ITL\np50", "ITL\np99", "load"),
            _throughput(results, kind),
            CAPTION,
        )
    output.table(
        "streamed and whole answers",
        ("clients", "streamed tok/s", "whole tok/s", "streamed to whole"),
        _streaming(results),
    )
    output.table(
        "GET /healthz, this service",
        ("load", "p50 ms", "p99 ms", "p99 to idle", "max ms", "requests"),
        _healthz(results),
        "on a keep-alive connection of its own, every 10 ms; target: p99 below 20 ms",
    )
    output.table(
        "answers equal to those of generate in text and prompt length",
        ("", "equal", "of"),
        ((system, equal, total) for system, (equal, total) in results.equal.items()),
    )
    output.table(
        "targets",
        ("clients, prompts: ratio of, to", "ratio", "each turn", "target", ""),
        _targets(results),
    )


def _throughput(results: Results, kind: Kind) -> Iterator[tuple[object, ...]]:
    numbers = sorted({clients for system, of, clients in results.turns if of == kind and system == SEQUENTIAL})
    for clients in numbers:
        base = results.together(SEQUENTIAL, kind, clients)
        for system in SYSTEMS:
            if (measurement := results.together(system, kind, clients)) and base:
                yield f"{clients:2}, {system}", *_figures(measurement, base)


def _figures(measurement: Measurement, base: Measurement) -> Iterator[float | None]:
    yield measurement.rate
    yield measurement.rate / base.rate
    for times in (measurement.first, measurement.gaps):
        for share in (50, 99):
            yield percentile(times, share) if times else None
    yield measurement.cpu or None


def _streaming(results: Results) -> Iterator[tuple[object, ...]]:
    for clients in (1, 16):
        streamed, whole = (results.together(system, "text", clients) for system in ("streamed", "whole"))
        if streamed and whole:
            yield str(clients), streamed.rate, whole.rate, streamed.rate / whole.rate


def _healthz(results: Results) -> Iterator[tuple[object, ...]]:
    idle = percentile(results.healthz.get("idle", []), 99)
    for during, times in results.healthz.items():
        p50, p99 = percentile(times, 50), percentile(times, 99)
        yield during, p50, p99, p99 / idle, max(times), len(times)


def _targets(results: Results) -> Iterator[tuple[object, ...]]:
    for ratio in results.ratios:
        turns = " ".join(f"{value:.3g}" for value in ratio.runs)
        sign = "≤" if ratio.at_most else "≥"
        verdict = "reached" if ratio.reached else "missed"
        yield ratio.what, f"{ratio.value:.3g}", turns, f"{sign} {ratio.target:g}", verdict
