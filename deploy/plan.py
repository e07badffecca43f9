"""What is wanted, what it is done with, and how far it has come."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deploy import receipt as receipts
from deploy.display import Display
from deploy.host import Host
from deploy.journal import Entry, Kind, Phase, Record, Strategy
from deploy.releases import Releases
from deploy.slots import Slots
from deploy.systemd import Systemd

_SETTLE = 0.1  # seconds for the last state files to be written


@dataclass(frozen=True)
class Tools:
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
    canary: tuple[float, ...] = ()
    step: float | None = 60.0
    sticky: str | None = None


@dataclass
class Rollout:
    """A plan under way: who is candidate, who was live, and where it is written down."""

    tools: Tools
    plan: Plan
    entry: Entry
    candidate: str
    old: str | None
    before: receipts.Snapshot
    probes: int = 0

    @classmethod
    def begin(cls, tools: Tools, plan: Plan, entry: Entry) -> Rollout:
        """Look at the host as it is before anything is touched."""
        old = tools.slots.live
        candidate = entry.record.slot
        entry.record.previous_slot = old
        entry.record.previous = tools.slots.version(old) if old else None
        entry.record.slot_held = tools.slots.target(candidate)
        return cls(tools, plan, entry, candidate, old, receipts.snapshot(tools.host))

    @classmethod
    def resume(cls, tools: Tools, plan: Plan, entry: Entry) -> Rollout:
        """Take up what a controller that died has written down; its receipt begins where ours does."""
        record = entry.record
        return cls(tools, plan, entry, record.slot, record.previous_slot, receipts.snapshot(tools.host))

    def enter(self, phase: Phase, text: str) -> None:
        """Write down that `phase` begins, then tell whoever watches."""
        self.entry.enter(phase)
        self.tools.display.phase(phase, text)

    def end(self, outcome: str, *, reason: str | None = None) -> Record:
        """Draw up the receipt and close the record."""
        time.sleep(_SETTLE)
        account = receipts.draw_up(self.before, receipts.snapshot(self.tools.host), probes=self.probes)
        self.entry.end(outcome, reason=reason, receipt=account)
        return self.entry.record

    @property
    def unit(self) -> str:
        """The candidate's unit."""
        return self.tools.host.unit(self.candidate)
