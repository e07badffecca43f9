"""The plan of a rollout, the objects it works with, and a rollout under way."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from rich.markup import escape

from deploy.analysis.reference import Reference
from deploy.display import Display
from deploy.errors import DrainCut, NotReady, Refused
from deploy.host import Host
from deploy.journal import receipt as receipts
from deploy.journal.journal import Entry
from deploy.journal.record import Kind, Phase, Record, RecordedLimits, Strategy
from deploy.policy import Limits
from deploy.releases.store import Releases
from deploy.rollout.digests import DigestCheck
from deploy.rollout.frozen import FrozenWorkers
from deploy.rollout.liveness import Liveness
from deploy.rollout.probe import Probe
from deploy.systemd.systemctl import Systemd
from deploy.systemd.timers import Timers
from service.contract.slots import Slots

__all__ = ["Context", "Plan", "Rollout"]

_FROZEN_DRAIN = 3.0  # seconds for requests of a slot that answers nothing, although its workers run
_WORKER_PUBLISH = 0.1  # seconds within which workers write their last counts


@dataclass(frozen=True)
class Context:
    """The host and the display of one command."""

    host: Host
    display: Display

    @property
    def slots(self) -> Slots:
        """The slots' symlinks."""
        return Slots(self.host.root)

    @property
    def systemd(self) -> Systemd:
        """The service manager."""
        return Systemd(self.host.user)

    @property
    def timers(self) -> Timers:
        """The transient timers."""
        return Timers(self.host)

    @property
    def releases(self) -> Releases:
        """The releases of the host."""
        return Releases(self.host)

    def log_hint(self, unit: str) -> str:
        """Return the command that shows the log of `unit`."""
        return f"its log: journalctl {'--user ' if self.host.user else ''}-u {unit}"


@dataclass(frozen=True)
class Plan:
    """The options of a rollout. Times are in seconds, shares in percent."""

    version: str
    kind: Kind = "deploy"
    strategy: Strategy = "overlap"
    reason: str | None = None
    """Why that strategy was chosen; None if the operator chose it."""
    bake: float = 60.0
    drain: float = 120.0
    keep_warm: float = 0.0
    canary: tuple[float, ...] = ()
    step: float | None = 60.0
    """Length of a canary step; None: until `glmctl promote`."""
    sticky: str | None = None
    mirror: float = 0.0
    """Share of the live slot's requests that are sent to the candidate too."""
    deadline: float = 600.0
    """How long clients may wait for the candidate of a swap to load."""
    analysis: Limits | None = None
    """None: responses are not compared, and the release's checks are not repeated."""

    @classmethod
    def of(cls, record: Record) -> Plan:
        """Return the plan of a rollout whose controller died, as far as its last phases need it."""
        return cls(
            record.version,
            kind=record.kind,
            strategy=record.strategy,
            bake=record.bake or 0.0,
            drain=record.drain,
            keep_warm=record.keep_warm,
            canary=tuple(share for share in record.canary if share),
            analysis=record.limits,
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """The canary steps; a mirror without a canary is one step of 0 %."""
        return self.canary or ((0.0,) if self.mirror else ())


@dataclass
class Rollout:
    """A plan under way. `candidate` is the slot of the new version, `old` the slot that was live at the start."""

    context: Context
    plan: Plan
    entry: Entry
    candidate: str
    old: str | None
    before: receipts.Snapshot
    probes: int = 0
    drain_cut: DrainCut | None = None
    """Set if a swap's drain deadline cut requests; the rollout goes on, and raises it at its end."""
    interruption: str | None = None
    """In which phase the controller that began it died; None while it is the one that runs."""
    kept: str | None = None
    """Why the candidate stays live although it should be undone; None if that is not so."""
    frozen: dict[str, FrozenWorkers] = field(default_factory=dict)
    """By slot."""
    hooks: Generator[None] | None = None
    """The operator's commands that run beside the bake."""
    digests: DigestCheck = field(default_factory=DigestCheck)
    is_guarded: bool = False
    """Whether the timer runs that resumes the rollout if this process dies."""

    def __post_init__(self) -> None:
        self.probe = Probe(self.context.systemd.listen)
        self.liveness = Liveness(self.context.host, self.candidate, self.frozen_in(self.candidate).heartbeats)
        self.reference = Reference(self.context.host, self.old or "", self.entry.record.previous or "")

    @classmethod
    def begin(cls, context: Context, plan: Plan, entry: Entry) -> Rollout:
        """Record the state of the host before anything is changed."""
        old = context.slots.live
        candidate = entry.record.slot
        entry.record.previous_slot = old
        entry.record.previous = context.slots.version(old) if old else None
        entry.record.strategy_reason = plan.reason
        entry.record.slot_held = context.slots.target(candidate)
        entry.record.canary = list(plan.shares) if old and plan.kind == "deploy" else []
        entry.record.step = plan.step if entry.record.canary else None
        entry.record.bake = plan.bake if old and plan.kind == "deploy" else None
        entry.record.drain, entry.record.keep_warm = plan.drain, plan.keep_warm
        if plan.analysis is not None and plan.analysis.enabled:
            entry.record.limits = RecordedLimits.model_validate(plan.analysis.model_dump())
        before = receipts.baseline(context.host)
        entry.keep(before)
        return cls(context, plan, entry, candidate, old, before)

    @classmethod
    def resume(cls, context: Context, entry: Entry) -> Rollout:
        """Continue the rollout of a dead controller; the receipt covers its part too."""
        record = entry.record
        before = entry.journal.read_snapshot(record.id)
        if before is None:
            before = receipts.baseline(context.host)
        interruption = f"interrupted in {record.phase}"
        plan = Plan.of(record)
        return cls(context, plan, entry, record.slot, record.previous_slot, before, interruption=interruption)

    def frozen_in(self, slot: str) -> FrozenWorkers:
        """Return the frozen workers of `slot`: those that were silent in an earlier phase are known in a later one."""
        if slot not in self.frozen:
            self.frozen[slot] = FrozenWorkers(self.context.host, self.context.systemd, slot)
        return self.frozen[slot]

    @property
    def record(self) -> Record:
        """The record in the journal."""
        return self.entry.record

    @property
    def is_swap(self) -> bool:
        """Whether the old version is unloaded before the candidate loads."""
        return self.plan.strategy == "swap"

    @property
    def unit(self) -> str:
        """The candidate's unit."""
        return self.context.host.unit(self.candidate)

    @property
    def drain(self) -> float:
        """How many seconds the candidate has for the requests in flight once the old slot is live again."""
        return min(self.plan.drain, _FROZEN_DRAIN) if self.liveness.is_frozen else self.plan.drain

    def enter(self, phase: Phase, text: str) -> None:
        """Write to the journal that `phase` begins, then display it.

        With the first phase that changes something a timer begins, which resumes the rollout if this process dies.
        """
        self.entry.enter(phase)
        self.context.display.phase(phase, text)
        if self.entry.unrecorded:
            self.context.display.line(f"[yellow]note[/] {escape(str(self.entry.unrecorded))}; the rollback goes on")
        elif phase != "preflight":
            self.guard()

    def require_digests(self, watch: Callable[[], object] = lambda: None) -> None:
        """Wait until the release's files were compared with their digests; `watch` is called meanwhile.

        Raises NotReady if one differs.
        """
        try:
            self.digests.finish(self.context.display, watch)
        except Refused as error:
            raise NotReady(str(error), hint=error.hint) from error
        self.record.digests = self.digests.seconds

    def guard(self) -> None:
        """Start the timer that resumes the rollout if this process dies; `end` stops it."""
        if not self.is_guarded:
            self.context.timers.start_guard(self.record.id)
            self.is_guarded = True

    def end(self, outcome: str, *, reason: str | None = None) -> Record:
        """Compute the receipt and end the record."""
        self.probe.end()
        if self.probe.longest_ms is not None:
            self.record.pause_ms = self.probe.longest_ms
        time.sleep(_WORKER_PUBLISH)
        probes = self.probes + self.probe.answered
        unread = sum(one.unread for one in self.frozen.values())
        receipt = receipts.settled(self.context.host, self.before, probes=probes, unread=unread)
        reason = ": ".join(filter(None, (self.interruption, reason))) or None
        self.entry.end(outcome, reason=reason, receipt=receipt)
        if self.is_guarded and not self.entry.unrecorded:  # else it ends the record once there is room
            self.context.timers.stop_guard(self.record.id)
        return self.record
