"""The state of a host at one moment: both slots, their recent times, and the current or last rollout."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import psutil

from deploy.analysis.comparison import measure
from deploy.analysis.group import Group
from deploy.analysis.recent import RecentStats
from deploy.analysis.verdict import Verdict
from deploy.journal.journal import Journal
from deploy.journal.record import Record, now, seconds_between
from deploy.reports import devices
from deploy.reports.report import interruption, summary
from deploy.reports.timeline import stages
from deploy.rollout.plan import Context
from service.contract.canary_file import Canary, CanaryFile
from service.contract.generations import Generation, current
from service.contract.slots import SLOTS

__all__ = ["Overview", "View"]

_RECENT = 30  # seconds shown one by one
_BEFORE = 600.0  # seconds of the old slot's responses before the cutover, with which a bake is compared


@dataclass(frozen=True)
class View:
    """The state of the host at one moment."""

    document: dict[str, Any]
    """The document that `status --json` prints."""
    record: Record | None = None
    """The current or last rollout."""
    so_far: Verdict | None = None
    """Metrics of the current canary step or bake; not judged."""
    recent: dict[str, list[int]] = field(default_factory=dict)
    """Responses of each slot in each of the last 30 seconds, oldest first."""


class Overview:
    """Collects views of a host. Samples that were read stay in memory between two views."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._listen: str | None = None
        self._stats: dict[str, RecentStats] = {}

    def collect(self) -> View:
        """Read units, links, state files, samples and journal once."""
        context = self._context
        self._listen = self._listen or context.systemd.listen()
        journal = Journal(context.host)
        last = journal.last()
        interrupted = last is not None and any(one.id == last.id for one in journal.interrupted())
        shown = {"phase": last.phase, "interrupted": interrupted} if last else {}
        live, canary = context.slots.live, CanaryFile(context.host.runtime).read()  # once, so that shares add up
        slots = {slot: self._slot(slot) | _shares(slot, live, canary) for slot in SLOTS}
        so_far = self._so_far(last) if last else None
        document = {
            "live": live,
            "listen": self._listen,
            "slots": slots,
            "devices": devices.views(context, {name: slot["memory"] for name, slot in slots.items()}),
            "rollout": last.model_dump(exclude={"receipt"}) | shown if last else None,
            "phases": [stage.document() for stage in stages(last)] if last else [],
            "verdict": so_far.model_dump() if so_far else None,
            "summary": (interruption(last) if interrupted else summary(last)) if last else None,
        }
        recent = {slot: stats.per_second(_RECENT) for slot, stats in self._stats.items()}
        return View(document, last, so_far, recent)

    def _slot(self, slot: str) -> dict[str, Any]:
        context = self._context
        generation = current(context.host.runtime, slot)
        unit = context.systemd.state(context.host.unit(slot))
        version = context.slots.version(slot)
        stats = self._stats_of(slot, generation)
        return {
            "version": generation.version if generation and generation.ready else version,
            "state": _state(version, unit.active, generation),
            "gate": generation.gate if generation else "closed",
            "generation": generation.generation if generation else None,
            "in_flight": generation.in_flight if generation else 0,
            "connections": generation.connections if generation else 0,
            "workers": len(generation.alive_workers) if generation else 0,
            "devices": _devices(generation),
            "memory": sum(_memory(worker.pid) for worker in generation.alive_workers) if generation else 0,
            "requests_per_s": stats.requests_per_s if stats else None,
            "p95": stats.p95 if stats else None,
            "ttft_p95": stats.ttft_p95 if stats else None,
            "errors": stats.errors if stats else None,
            "load": generation.load if generation else {},
            "status_text": unit.status or None,
        }

    def _stats_of(self, slot: str, generation: Generation | None) -> RecentStats | None:
        if generation is None or not generation.ready:
            self._stats.pop(slot, None)
            return None
        if slot not in self._stats or self._stats[slot].version != generation.version:
            self._stats[slot] = RecentStats(self._context.host, slot, generation.version)
        self._stats[slot].update()
        return self._stats[slot]

    def _so_far(self, record: Record) -> Verdict | None:
        candidate_stats = self._stats.get(record.slot)
        if record.outcome is not None or record.phase not in {"canary", "bake"} or candidate_stats is None:
            return None
        moment = time.monotonic()
        began = moment - (seconds_between(record.steps[-1].at, now()) or 0.0)
        live_stats = self._stats.get(record.previous_slot or "")
        candidate, live = candidate_stats.between(began), Group()
        if live_stats and record.phase == "canary":
            live = live_stats.between(began)
            candidate.add(live_stats.between(began, mirrored=True).mirrored)
        elif live_stats:
            live = live_stats.between(began - _BEFORE, began)
        return Verdict(window=record.phase, metrics=measure(candidate, live))


def _shares(slot: str, live: str | None, canary: Canary | None) -> dict[str, float]:
    """Return the share of the client requests that the slot answers, and that are mirrored to it, in percent."""
    step = canary if canary is not None and canary.slot != live else None
    candidate = step.weight if step else 0.0
    return {
        "share": 100 - candidate if slot == live else candidate,
        "mirror": step.mirror if step and slot == step.slot else 0.0,
    }


def _devices(generation: Generation | None) -> list[dict[str, Any]]:
    """Return the device of each worker that runs, in the order of the devices."""
    workers = generation.alive_workers if generation else []
    return [
        {"device": worker.device, "pid": worker.pid, "phase": worker.phase, "in_flight": worker.in_flight}
        for worker in sorted(workers, key=lambda worker: (len(worker.device), worker.device, worker.pid))
    ]


def _memory(pid: int) -> int:
    """Return the resident memory in bytes; 0 if the process has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _state(version: str | None, active: str, generation: Generation | None) -> str:
    if active in {"active", "reloading"}:
        return _state_of_active(generation)
    if version is None:
        return "empty"
    return {"activating": "starting", "deactivating": "stopping", "failed": "failed"}.get(active, "stopped")


def _state_of_active(generation: Generation | None) -> str:
    """Return the state of a slot whose unit is active."""
    if generation is None or not generation.ready:
        return "starting"
    if generation.is_serving:
        return "ready"
    if generation.alive_workers and all(worker.phase == "asleep" for worker in generation.alive_workers):
        return "vacant"
    if generation.alive_workers:
        return "stopping" if all(worker.phase == "leaving" for worker in generation.alive_workers) else "starting"
    newest = max(generation.workers, key=lambda worker: worker.start_ticks or 0, default=None)
    # a worker stopped by a swap records `gone`; a killed one does not, and its master replaces it
    return "vacant" if newest and newest.phase == "gone" else "starting"
