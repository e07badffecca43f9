"""The figures that a run measures, by part: their names in the JSON document, their units, and what they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["CLIENTS", "COLUMNS", "FIGURES", "LOAD_PARTS", "PARTS", "ROWS", "STRATEGIES", "Figure", "Value"]

Value = float | int | str | bool | None
"""None: it could not be measured; the line has a note that says why."""

ROWS = (1, 16, 64)
CLIENTS = (1, 16, 64)
COLUMNS = (256, 1024, 2048, 4096, 16_384)
STRATEGIES = ("overlap", "weights", "swap", "canary")
LOAD_PARTS = ("imports", "reading", "building", "warming up", "checking")


@dataclass(frozen=True)
class Figure:
    """One figure; its part is the first word of its name."""

    name: str
    unit: str
    what: str

    @property
    def part(self) -> str:
        """The part of a run that measures it."""
        return self.name.partition(".")[0]


def _figures() -> Iterator[Figure]:
    yield Figure("bandwidth.device", "GB/s", "memory of the device, read and written by a copy")
    yield Figure("bandwidth.pageable", "GB/s", "host to device, from pageable memory")
    yield Figure("bandwidth.pinned", "GB/s", "host to device, from pinned memory")
    yield Figure("bandwidth.disk", "GB/s", "read of a file that was dropped from the page cache")
    yield Figure("bandwidth.page_cache", "GB/s", "read of the same file from the page cache")
    yield Figure("engine.weights", "GB", "size of the weights")
    yield Figure("engine.load", "s", "load of the weights from the page cache")
    yield Figure("engine.load_rate", "GB/s", "the same as a rate")
    yield Figure("engine.step_weights", "GB", "weights that one decode step reads")
    for rows in ROWS:
        yield Figure(f"engine.rate_{rows}", "tokens/s", f"engine alone, {_number(rows, 'row')}")
    yield Figure("engine.prompt_512", "ms", "prompt of 512 tokens")
    for columns in COLUMNS:
        yield Figure(f"engine.step_{columns}", "ms", f"decode step of one row, {columns:,} columns")
    yield Figure("digests.add", "s", "glmctl release add")
    yield Figure("digests.verify", "s", "glmctl release verify")
    yield Figure("digests.verify_rate", "GB/s", "the same as a rate")
    yield Figure("http.ready", "s", "start of the server to READY")
    for part in LOAD_PARTS:
        yield Figure(f"http.ready_{part.replace(' ', '_')}", "s", f"of it, {part}")
    for clients in CLIENTS:
        yield Figure(f"http.rate_{clients}", "tokens/s", f"over HTTP, {_number(clients, 'client')} of 64 tokens")
    yield Figure("http.mixed_p50", "ms", "answer of 8 tokens beside the mixed load, median")
    yield Figure("rollouts.missing_program", "", "exit code of a deploy without systemd-run")
    yield Figure("rollouts.free", "GB", "free on the device beside the live slot")
    for strategy in STRATEGIES:
        yield Figure(f"rollouts.{strategy}", "", f"{strategy}: outcome")
        yield Figure(f"rollouts.{strategy}_seconds", "s", f"{strategy}: the command")
        yield Figure(f"rollouts.{strategy}_preflight", "s", f"{strategy}: its preflight")
        yield Figure(f"rollouts.{strategy}_switch", "s", f"{strategy}: command until the new version gives all answers")
        yield Figure(f"rollouts.{strategy}_wait", "s", f"{strategy}: longest wait of a client")
        yield Figure(f"rollouts.{strategy}_sent", "", f"{strategy}: requests sent")
        yield Figure(f"rollouts.{strategy}_lost", "", f"{strategy}: requests lost")
    yield Figure("rollouts.weights_held", "s", "weights: longest time for which a worker held requests back")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


FIGURES = {figure.name: figure for figure in _figures()}
PARTS = tuple(dict.fromkeys(figure.part for figure in FIGURES.values()))
