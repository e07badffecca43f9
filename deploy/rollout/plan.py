"""What is wanted, what it is done with, and how far it has come."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deploy.display import Display
from deploy.errors import DrainCut
from deploy.host import Host
from deploy.journal import receipt as receipts
from deploy.journal.journal import Entry, Kind, Phase, Record, Strategy
from deploy.policy import Limits
from deploy.releases.store import Releases
from deploy.rollout.probe import Probe
from deploy.rollout.slots import Slots
from deploy.systemd.systemctl import Systemd
from deploy.systemd.timers import Timers

_SETTLE = 0.1  # seconds for the last state files to be written


@dataclass(frozen=True)
class Context:
    """What a rollout works with."""

    host: Host
    display: Display

    @property
    def slots(self) -> Slots:
        """The symlinks."""
        return Slots(self.host)

    @property
    def systemd(self) -> Systemd:
        """The service manager."""
        return Systemd(self.host.user)

    @property
    def timers(self) -> Timers:
        """What is to be done later."""
        return Timers(self.host)

    @property
    def releases(self) -> Releases:
        """The releases."""
        return Releases(self.host)


@dataclass(frozen=True)
class Plan:
    """What is wanted. Times are in seconds, shares in percent; a `step` of None waits for the operator."""

    version: str
    kind: Kind = "deploy"
    strategy: Strategy = "overlap"
    bake: float = 60.0
    drain: float = 120.0
    keep_warm: float = 0.0
    canary: tuple[float, ...] = ()
    step: float | None = 60.0
    sticky: str | None = None
    mirror: float = 0.0
    """Share of the live slot's requests that are asked of the candidate too."""
    deadline: float = 600.0
    """How long clients may wait for the candidate of a swap to load."""
    analysis: Limits | None = None
    """By what the candidate is judged; None: by whether it lives."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The canary's steps; a mirror without a canary is a step in which no request is the candidate's."""
        return self.canary or ((0.0,) if self.mirror else ())


@dataclass
class Rollout:
    """A plan under way: who is candidate, who was live, and where it is written down."""

    context: Context
    plan: Plan
    entry: Entry
    candidate: str
    old: str | None
    before: receipts.Snapshot
    probes: int = 0
    was_cut: DrainCut | None = None

    def __post_init__(self) -> None:
        self.probe = Probe(self.context.systemd.listen)

    @property
    def swaps(self) -> bool:
        """Whether the old version leaves before the candidate loads."""
        return self.plan.strategy == "swap"

    def cut(self, in_flight: int, slot: str) -> None:
        """Note that a deadline cut requests; told at the end, for the rollout goes on."""
        self.was_cut = DrainCut.of(in_flight, slot, self.plan.drain)

    @classmethod
    def begin(cls, context: Context, plan: Plan, entry: Entry) -> Rollout:
        """Look at the host as it is before anything is touched."""
        old = context.slots.live
        candidate = entry.record.slot
        entry.record.previous_slot = old
        entry.record.previous = context.slots.version(old) if old else None
        entry.record.slot_held = context.slots.target(candidate)
        entry.record.canary = list(plan.shares) if old and plan.kind == "deploy" else []
        entry.record.step = plan.step if entry.record.canary else None
        entry.record.bake = plan.bake if old and plan.kind == "deploy" else None
        before = receipts.snapshot(context.host)
        entry.journal.keep_before(entry.record.id, before)
        return cls(context, plan, entry, candidate, old, before)

    @classmethod
    def resume(cls, context: Context, plan: Plan, entry: Entry) -> Rollout:
        """Take up what a controller that died has written down; the receipt covers what it did, too."""
        record = entry.record
        before = entry.journal.before(record.id)
        if before is None:
            before = receipts.snapshot(context.host)
        return cls(context, plan, entry, record.slot, record.previous_slot, before)

    def enter(self, phase: Phase, text: str) -> None:
        """Write down that `phase` begins, then tell whoever watches."""
        self.entry.enter(phase)
        self.context.display.phase(phase, text)

    def end(self, outcome: str, *, reason: str | None = None) -> Record:
        """Draw up the receipt and close the record."""
        self.probe.end()
        if self.swaps:
            self.context.timers.stop_guard()
        if self.probe.longest_ms is not None:
            self.entry.record.pause_ms = self.probe.longest_ms
        time.sleep(_SETTLE)
        account = receipts.draw_up(
            self.before, receipts.snapshot(self.context.host), probes=self.probes + self.probe.asked
        )
        self.entry.end(outcome, reason=reason, receipt=account)
        return self.entry.record

    @property
    def unit(self) -> str:
        """The candidate's unit."""
        return self.context.host.unit(self.candidate)
