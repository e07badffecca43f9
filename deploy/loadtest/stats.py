"""The counts and times of a running load; every request is counted once as sent, then once as completed or lost."""

from __future__ import annotations

import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.loadtest.losses import LossKind, RequestLost
from deploy.loadtest.report import ClassReport, Latency, Loss, Report, Switch
from deploy.loadtest.validation import Origin

MAX_LOSSES = 20
"""Different losses described per class; every loss is counted."""
MAX_SWITCHES = 4096
"""Switches kept per class, the newest: with a canary of 50 % the version changes with every second response."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The counts of a running load so far."""

    seconds: float
    sent: int
    ok: int
    lost: int
    in_flight: int
    by_version: dict[str, int]


class ClassStats:
    """The counts and times of one class of clients."""

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
        """Seconds, and the CLOCK_MONOTONIC time of its end."""
        self.losses: dict[tuple[LossKind, str, str], Loss] = {}
        self.switches: deque[Switch] = deque(maxlen=MAX_SWITCHES)
        self._idle_closes = 0
        self._started = started

    @property
    def ok(self) -> int:
        """Requests with a correct response."""
        return len(self.latencies)

    def record_completed(self, origin: Origin, latency: float) -> None:
        """Count a correct response; `latency` in seconds."""
        self.latencies.append(latency)
        self.by_version[origin.version] += 1
        self.by_slot[origin.slot] += 1

    def record_lost(self, label: str, loss: RequestLost, connection: str) -> None:
        """Count a lost request; `connection` describes the earlier responses on its connection."""
        self.lost += 1
        self._idle_closes += loss.kind is LossKind.IDLE
        key = (loss.kind, label, loss.detail)
        if (known := self.losses.get(key)) is not None:
            self.losses[key] = known.model_copy(update={"count": known.count + 1})
        elif len(self.losses) < MAX_LOSSES:
            at = time.monotonic()
            self.losses[key] = Loss(
                client=self.name,
                kind=loss.kind,
                sent=label,
                came=loss.detail,
                at=at,
                after_s=round(at - self._started, 6),
                connection=connection,
                count=1,
            )

    def record_pause(self, seconds: float) -> None:
        """Record a wait of that length that ended now."""
        if seconds > self.longest_pause[0]:
            self.longest_pause = (seconds, time.monotonic())

    def report(self) -> ClassReport:
        """Return the report of this class."""
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


class LoadStats:
    """The counts and times of all classes."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.classes: dict[str, ClassStats] = {}
        self.loop_delay = 0.0
        """Longest delay in seconds of the event loop of the load itself."""

    def add(self, name: str, clients: int) -> ClassStats:
        """Add a class."""
        self.classes[name] = ClassStats(name, clients, self.started)
        return self.classes[name]

    def progress(self) -> Progress:
        """Return the counts so far."""
        classes = self.classes.values()
        sent, ok, lost = sum(c.sent for c in classes), sum(c.ok for c in classes), sum(c.lost for c in classes)
        seconds = time.monotonic() - self.started
        return Progress(seconds, sent, ok, lost, sent - ok - lost, dict(_sum(c.by_version for c in classes)))

    def report(self, target: str) -> Report:
        """Return the report of the whole load."""
        classes = list(self.classes.values())
        now = self.progress()
        latencies = array("d")
        for stats in classes:
            latencies.extend(stats.latencies)
        slowest = max(classes, key=lambda stats: stats.longest_pause, default=None)
        pause, at = slowest.longest_pause if slowest else (0.0, 0.0)
        return Report(
            target=target,
            started=self.started,
            seconds=round(now.seconds, 3),
            sent=now.sent,
            ok=now.ok,
            lost=now.lost,
            requests_per_second=round(now.ok / now.seconds, 1),
            latency=_latency(latencies),
            longest_pause_ms=_ms(pause),
            longest_pause_by=slowest.name if slowest else "",
            longest_pause_at=at,
            own_lag_ms=_ms(self.loop_delay),
            by_version=now.by_version,
            by_slot=dict(_sum(stats.by_slot for stats in classes)),
            by_class={stats.name: stats.report() for stats in classes},
            losses=[loss for stats in classes for loss in stats.losses.values()],
        )


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter[str]())


def _latency(seconds: array[float]) -> Latency:
    ranked = sorted(seconds) or [0.0]
    # nearest rank: every percentile is a latency that was measured
    shares = (0.5, 0.99, 0.999, 1.0)
    p50, p99, p999, worst = (ranked[min(len(ranked) - 1, int(len(ranked) * share))] for share in shares)
    return Latency(p50_ms=_ms(p50), p99_ms=_ms(p99), p999_ms=_ms(p999), max_ms=_ms(worst))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
