"""A host at one moment: its slots, how they do, and the rollout under way or the last one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from deploy.analysis import comparison as analysis
from deploy.analysis.comparison import Group, Verdict
from deploy.analysis.recent import RecentStats
from deploy.host import SLOTS
from deploy.journal.accounts import Generation, current
from deploy.journal.journal import Journal, Record, now, seconds_between
from deploy.policy import Limits
from deploy.reports import report
from deploy.rollout.canary_file import Share
from deploy.rollout.plan import Context

__all__ = ["Overview", "View"]

_RECENT = 30  # seconds of which each is told
_BEFORE = 600.0  # seconds before a cutover in which the old slot's answers are what a bake is compared with


@dataclass(frozen=True)
class View:
    """What was seen at one look."""

    document: dict[str, Any]
    """What `status --json` prints."""
    record: Record | None = None
    so_far: Verdict | None = None
    """The window under way, measured and not yet judged."""
    recent: dict[str, list[int]] = field(default_factory=dict)
    """Answers of each slot in each of the last seconds."""


class Overview:
    """Looks again and again; what it has read of the rings is kept between two looks."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._listen: str | None = None
        self._stats: dict[str, RecentStats] = {}

    def look(self) -> View:
        """Look at everything once."""
        context = self._context
        self._listen = self._listen or context.systemd.listen()
        last = Journal(context.host).last()
        document = {
            "live": context.slots.live,
            "listen": self._listen,
            "slots": {slot: self._slot(slot) for slot in SLOTS},
            "rollout": last.model_dump(exclude={"receipt"}) | {"phase": last.phase} if last else None,
            "summary": report.summary(last) if last else None,
        }
        recent = {slot: stats.per_second(_RECENT) for slot, stats in self._stats.items()}
        return View(document, last, self._so_far(last) if last else None, recent)

    def _slot(self, slot: str) -> dict[str, Any]:
        context = self._context
        one = current(context.host, slot)
        unit = context.systemd.state(context.host.unit(slot))
        version = context.slots.version(slot)
        stats = self._stats_of(slot, one)
        return {
            "version": one.version if one and one.ready else version,
            "state": _state(version, unit.active, one),
            "gate": one.gate if one else "closed",
            "generation": one.generation if one else None,
            "share": self._share(slot),
            "mirror": self._mirror(slot),
            "in_flight": one.in_flight if one else 0,
            "connections": one.connections if one else 0,
            "workers": len(one.living) if one else 0,
            "memory": sum(worker.memory for worker in one.living) if one else 0,
            "requests_per_s": stats.requests_per_s if stats else None,
            "p95": stats.p95 if stats else None,
            "ttft_p95": stats.ttft_p95 if stats else None,
            "status_text": unit.status or None,
        }

    def _stats_of(self, slot: str, one: Generation | None) -> RecentStats | None:
        if one is None or not one.ready:
            self._stats.pop(slot, None)
            return None
        if slot not in self._stats or self._stats[slot].version != one.version:
            self._stats[slot] = RecentStats(self._context.host, slot, one.version)
        self._stats[slot].look()
        return self._stats[slot]

    def _share(self, slot: str) -> float:
        """What share of the requests it answers, in percent."""
        canary, live = Share(self._context.host), self._context.slots.live
        given = canary.weight if canary.slot not in {None, live} else None
        if slot == live:
            return 100 - (given or 0.0)
        return given or 0.0

    def _mirror(self, slot: str) -> float:
        """What share of the live slot's requests it is asked too, in percent."""
        canary = Share(self._context.host)
        return canary.mirror if canary.slot == slot != self._context.slots.live else 0.0

    def _so_far(self, record: Record) -> Verdict | None:
        ours = self._stats.get(record.slot)
        if record.outcome is not None or record.phase not in {"canary", "bake"} or ours is None:
            return None
        moment = time.monotonic()
        began = moment - (seconds_between(record.steps[-1].at, now()) or 0.0)
        theirs = self._stats.get(record.previous_slot or "")
        candidate, live = ours.between(began), Group()
        if theirs and record.phase == "canary":
            live = theirs.between(began)
            candidate.samples += theirs.between(began, mirrored=True).samples
        elif theirs:
            live = theirs.between(began - _BEFORE, began)
        limits = Limits()  # not asked where there is no level to judge by
        metrics = [analysis.errors(candidate, live, Group(), limits, None)]
        metrics += [analysis.times("p95", candidate, live, limits, None)]
        metrics += [analysis.times("ttft p95", candidate, live, limits, None)]
        return Verdict(window=record.phase, metrics=[one for one in metrics if one.candidate_requests])


def _state(version: str | None, active: str, one: Generation | None) -> str:
    if active in {"active", "reloading"}:
        return _inside(one)
    if version is None:
        return "empty"
    return {"activating": "starting", "deactivating": "stopping", "failed": "failed"}.get(active, "stopped")


def _inside(one: Generation | None) -> str:
    """How it is with a slot whose unit is up."""
    if one is None or not one.ready:
        return "starting"
    if one.serves:
        return "ready"
    if one.living:
        return "stopping" if all(worker.phase == "leaving" for worker in one.living) else "starting"
    newest = max(one.workers, key=lambda worker: worker.born or 0, default=None)
    # one that was sent home has said so; one that was killed has not, and is replaced
    return "vacant" if newest and newest.phase == "gone" else "starting"
