"""All figures of one run, and the ratios that the engine has to reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.clients import Answer
from tests.bench.figures import Figures, percentile
from tests.bench.questions import Kind

__all__ = ["CONTENDERS", "OURS", "PADDED", "SEQUENTIAL", "SERVE", "Ratio", "Results"]

OURS, SEQUENTIAL, PADDED, SERVE = "ours, HTTP", "generate, one by one", "generate, padded batch", "transformers serve"
CONTENDERS = (OURS, SEQUENTIAL, PADDED, SERVE)

Place = tuple[str, Kind, int]  # who, asked what, by how many


@dataclass(frozen=True)
class Ratio:
    """Something to reach: `value` at least, or at most, `target`; `runs` is the value in each turn by itself."""

    what: str
    value: float
    target: float
    runs: tuple[float, ...]
    at_most: bool = False

    @property
    def reached(self) -> bool:
        """Whether the value of all turns together is good enough."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass
class Results:
    """What was measured so far; every turn of a contender is kept."""

    turns: dict[Place, list[Figures]] = field(default_factory=dict)
    healthz: dict[str, list[float]] = field(default_factory=dict)  # ms, by what went on meanwhile
    equal: dict[str, tuple[int, int]] = field(default_factory=dict)  # answers equal to generate's, of how many

    def add(self, who: str, kind: Kind, clients: int, figures: Figures) -> None:
        """Keep one turn."""
        self.turns.setdefault((who, kind, clients), []).append(figures)

    def compare(self, who: str, expected: Sequence[Answer], answers: Sequence[Answer]) -> None:
        """Count answers that are equal in text and length of the prompt."""
        equal, of = self.equal.get(who, (0, 0))
        pairs = zip(expected, answers, strict=True)
        self.equal[who] = equal + sum(one == other for one, other in pairs), of + len(expected)

    def together(self, who: str, kind: Kind, clients: int) -> Figures | None:
        """All turns as one."""
        turns = self.turns.get((who, kind, clients))
        return sum(turns[1:], turns[0]) if turns else None

    @property
    def ratios(self) -> list[Ratio]:
        """What is to be reached, as far as it was measured."""
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
        ours, theirs = self.turns.get((OURS, kind, clients), []), self.turns.get((than, kind, clients), [])
        if not ours or not theirs:
            return []
        runs = tuple(one.rate / other.rate for one, other in zip(ours, theirs, strict=False))
        value = _sum(ours).rate / _sum(theirs).rate
        return [Ratio(f"{clients} client(s), {kind}: tokens/s to {than}", value, target, runs)]

    def _sooner(self, kind: Kind, clients: int, than: str, target: float) -> list[Ratio]:
        ours, theirs = self.turns.get((OURS, kind, clients), []), self.turns.get((than, kind, clients), [])
        if not ours or not theirs:
            return []

        def ratio(one: Figures, other: Figures) -> float:
            return percentile(one.first, 99) / percentile(other.first, 99)

        runs = tuple(ratio(one, other) for one, other in zip(ours, theirs, strict=False))
        what = f"{clients} client(s), {kind}: TTFT p99 to {than}"
        return [Ratio(what, ratio(_sum(ours), _sum(theirs)), target, runs, at_most=True)]

    def document(self) -> dict[str, Any]:
        """What --json keeps."""
        return {
            "cells": [
                {"who": who, "kind": kind, "clients": clients, "turns": [one.document() for one in turns]}
                | _sum(turns).document()
                for (who, kind, clients), turns in self.turns.items()
            ],
            "ratios": [
                {"what": one.what, "value": one.value, "target": one.target, "at_most": one.at_most, "runs": one.runs}
                for one in self.ratios
            ],
            "healthz_ms": {
                when: {"p50": percentile(took, 50), "p99": percentile(took, 99), "requests": len(took)}
                for when, took in self.healthz.items()
            },
            "equal_answers": self.equal,
        }


def _sum(turns: Sequence[Figures]) -> Figures:
    return sum(turns[1:], turns[0])
