"""The results of one run of the engine's benchmark, and the ratios that have a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.bench.chat_load import Answer
from tests.bench.measurement import Measurement, percentile
from tests.bench.prompts import Kind

__all__ = ["PADDED", "SEQUENTIAL", "SERVE", "SERVICE", "SYSTEMS", "Ratio", "Results"]

SERVICE, SEQUENTIAL = "this service", "generate, one by one"
PADDED, SERVE = "generate, padded batch", "transformers serve"
SYSTEMS = (SERVICE, SEQUENTIAL, PADDED, SERVE)

Cell = tuple[str, Kind, int]  # system, kind of prompts, number of clients


@dataclass(frozen=True)
class Ratio:
    """A ratio whose `value` is to be at least (or `at_most`) `target`; `runs` has the value of each turn."""

    what: str
    value: float
    target: float
    runs: tuple[float, ...]
    at_most: bool = False

    @property
    def reached(self) -> bool:
        """Whether the value of all turns together meets the target."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass
class Results:
    """The measurements so far."""

    turns: dict[Cell, list[Measurement]] = field(default_factory=dict)
    healthz: dict[str, list[float]] = field(default_factory=dict)
    """Latencies of GET /healthz in ms, by the load during them."""
    equal: dict[str, tuple[int, int]] = field(default_factory=dict)
    """For each system the number of answers equal to those of generate, and of all answers."""

    def add(self, system: str, kind: Kind, clients: int, measurement: Measurement) -> None:
        """Keep the measurement of one turn."""
        self.turns.setdefault((system, kind, clients), []).append(measurement)

    def compare(self, system: str, expected: Sequence[Answer], answers: Sequence[Answer]) -> None:
        """Count the answers whose text and prompt length are equal."""
        equal, total = self.equal.get(system, (0, 0))
        pairs = zip(expected, answers, strict=True)
        self.equal[system] = equal + sum(one == other for one, other in pairs), total + len(expected)

    def together(self, system: str, kind: Kind, clients: int) -> Measurement | None:
        """Return the sum of all turns; None without one."""
        turns = self.turns.get((system, kind, clients))
        return sum(turns[1:], turns[0]) if turns else None

    @property
    def ratios(self) -> list[Ratio]:
        """The ratios with a target, as far as they were measured."""
        found = []
        for kind in ("text", "image"):
            found += [
                *self._faster(kind, 16, SEQUENTIAL, 6.0),
                *self._faster(kind, 16, SERVE, 4.0),
                *self._sooner(kind, 16, SERVE, 0.1),
                *self._faster(kind, 1, SEQUENTIAL, 0.95),
            ]
        return found

    def _faster(self, kind: Kind, clients: int, than: str, target: float) -> list[Ratio]:
        what = f"{clients}, {kind}: tokens/s, {than}"
        return self._ratio(kind, clients, than, what, target, lambda turn: turn.rate)

    def _sooner(self, kind: Kind, clients: int, than: str, target: float) -> list[Ratio]:
        what = f"{clients}, {kind}: TTFT p99, {than}"
        return self._ratio(kind, clients, than, what, target, lambda turn: percentile(turn.first, 99), at_most=True)

    def _ratio(
        self,
        kind: Kind,
        clients: int,
        than: str,
        what: str,
        target: float,
        value: Callable[[Measurement], float],
        *,
        at_most: bool = False,
    ) -> list[Ratio]:
        """Return the ratio of the service's value to that of another system; empty unless both were measured."""
        service, other = self.turns.get((SERVICE, kind, clients), []), self.turns.get((than, kind, clients), [])
        if not service or not other:
            return []
        runs = tuple(value(one) / value(another) for one, another in zip(service, other, strict=False))
        return [Ratio(what, value(_sum(service)) / value(_sum(other)), target, runs, at_most)]

    def document(self) -> dict[str, Any]:
        """Return the document of --json."""
        return {
            "cells": [
                {"who": system, "kind": kind, "clients": clients, "turns": [turn.document() for turn in turns]}
                | _sum(turns).document()
                for (system, kind, clients), turns in self.turns.items()
            ],
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "healthz_ms": {
                during: {"p50": percentile(times, 50), "p99": percentile(times, 99), "requests": len(times)}
                for during, times in self.healthz.items()
            },
            "equal_answers": self.equal,
        }


def _sum(turns: Sequence[Measurement]) -> Measurement:
    return sum(turns[1:], turns[0])
