"""The account of every request: entered when a client sets out to send it, settled exactly once."""

from __future__ import annotations

import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.loadtest.dialogue import Origin
from deploy.loadtest.report import ClassReport, Latency, Loss, Report, Switch
from deploy.loadtest.wire import BrokenError, Kind

DESCRIBED = 20
"""Different losses described for each class; all are counted."""
SWITCHES = 4096
"""Kept for each class, the newest: a canary of 50 % changes the version with every other answer."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running load stands."""

    seconds: float
    sent: int
    ok: int
    lost: int
    in_flight: int
    by_version: dict[str, int]


class Tally:
    """The account of one class of clients."""

    def __init__(self, name: str, clients: int, started: float) -> None:
        self.name = name
        self.clients = clients
        self.connections = 0
        self.announced_closes = 0
        self.sent = 0
        self.lost = 0
        self.latencies = array("d")
        self.by_version: Counter[str] = Counter()
        self.by_slot: Counter[str] = Counter()
        self.longest_pause = (0.0, 0.0)
        self.losses: dict[tuple[Kind, str, str], Loss] = {}
        self.switches: deque[Switch] = deque(maxlen=SWITCHES)
        self._idle_closes = 0
        self._started = started

    @property
    def ok(self) -> int:
        """Requests rightly answered."""
        return len(self.latencies)

    def settle_ok(self, origin: Origin, latency: float) -> None:
        """A request was answered rightly."""
        self.latencies.append(latency)
        self.by_version[origin.version] += 1
        self.by_slot[origin.slot] += 1

    def settle_lost(self, label: str, broken: BrokenError, connection: str) -> None:
        """A request was lost; `connection` says what had gone over its connection before."""
        self.lost += 1
        self._idle_closes += broken.kind is Kind.IDLE
        key = (broken.kind, label, broken.came)
        if (known := self.losses.get(key)) is not None:
            self.losses[key] = known.model_copy(update={"count": known.count + 1})
        elif len(self.losses) < DESCRIBED:
            at = time.monotonic()
            self.losses[key] = Loss(
                client=self.name,
                kind=broken.kind,
                sent=label,
                came=broken.came,
                at=at,
                after_s=round(at - self._started, 6),
                connection=connection,
                count=1,
            )

    def paused(self, seconds: float) -> None:
        """A client waited that long, up to now."""
        if seconds > self.longest_pause[0]:
            self.longest_pause = (seconds, time.monotonic())

    def report(self) -> ClassReport:
        """The account as a value."""
        return ClassReport(
            clients=self.clients,
            sent=self.sent,
            ok=self.ok,
            lost=self.lost,
            latency=_latency(self.latencies),
            longest_pause_ms=_ms(self.longest_pause[0]),
            by_version=dict(self.by_version),
            by_slot=dict(self.by_slot),
            connections=self.connections,
            idle_closes=self._idle_closes,
            announced_closes=self.announced_closes,
            switches=list(self.switches),
        )


class Ledger:
    """The accounts of all classes."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.tallies: dict[str, Tally] = {}
        self.own_lag = 0.0

    def open(self, name: str, clients: int) -> Tally:
        """Begin the account of a class."""
        self.tallies[name] = Tally(name, clients, self.started)
        return self.tallies[name]

    def progress(self) -> Progress:
        """Where the load stands now."""
        tallies = self.tallies.values()
        sent, ok, lost = sum(t.sent for t in tallies), sum(t.ok for t in tallies), sum(t.lost for t in tallies)
        seconds = time.monotonic() - self.started
        return Progress(seconds, sent, ok, lost, sent - ok - lost, dict(_sum(t.by_version for t in tallies)))

    def report(self, target: str) -> Report:
        """The account of everything."""
        tallies = list(self.tallies.values())
        now = self.progress()
        everything = array("d")
        for tally in tallies:
            everything.extend(tally.latencies)
        worst = max(tallies, key=lambda tally: tally.longest_pause, default=None)
        pause, at = worst.longest_pause if worst else (0.0, 0.0)
        return Report(
            target=target,
            started=self.started,
            seconds=round(now.seconds, 3),
            sent=now.sent,
            ok=now.ok,
            lost=now.lost,
            requests_per_second=round(now.ok / now.seconds, 1),
            latency=_latency(everything),
            longest_pause_ms=_ms(pause),
            longest_pause_by=worst.name if worst else "",
            longest_pause_at=at,
            own_lag_ms=_ms(self.own_lag),
            by_version=now.by_version,
            by_slot=dict(_sum(tally.by_slot for tally in tallies)),
            by_class={tally.name: tally.report() for tally in tallies},
            losses=[loss for tally in tallies for loss in tally.losses.values()],
        )


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter[str]())


def _latency(seconds: array[float]) -> Latency:
    ranked = sorted(seconds) or [0.0]
    # nearest rank: a value that a client really saw
    p50, p99, worst = (ranked[min(len(ranked) - 1, int(len(ranked) * share))] for share in (0.5, 0.99, 1.0))
    return Latency(p50_ms=_ms(p50), p99_ms=_ms(p99), max_ms=_ms(worst))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
