"""Whether the device of a release has the memory for it: beside the live slot, or in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil

from deploy.display import size
from deploy.errors import Refused
from deploy.journal.record import Strategy
from deploy.policy import Policy
from deploy.rollout import gpus, need
from deploy.rollout.gpus import Gpu
from deploy.rollout.plan import Context
from service.contract.device_memory import Copy, Device, fits, room
from service.contract.generations import current
from service.contract.memory_policy import MemoryPolicy
from service.contract.slots import SLOTS
from service.contract.worker_state import WorkerState

__all__ = ["Memory", "NoRoom", "require", "survey", "workers_of"]


class NoRoom(Refused):
    """The memory does not hold the release; another strategy may need less."""


@dataclass(frozen=True)
class Memory:
    """The device of a release, and what each slot holds of it, in bytes."""

    device: Device
    held: dict[str, int]

    def found_by(self, strategy: Strategy, live: str | None, idle: str) -> Device:
        """Return the device as the candidate finds it: the idle slot has been freed, by a swap the live slot too."""
        freed = self.held[idle] + (self.held[live] if live and strategy == "swap" else 0)
        stays = self.held[live] if live and strategy != "swap" else 0
        return replace(self.device, free=self.device.free + freed, slots=stays)


def survey(context: Context, found: list[Gpu]) -> Memory:
    """Return the memory of the GPUs `found`, of the host without any. Of several, that of the fullest."""
    workers = {
        slot: generation.alive_workers if (generation := current(context.host.runtime, slot)) else [] for slot in SLOTS
    }
    held = {slot: _held(each, found) for slot, each in workers.items()}
    if found:
        device = Device("cuda", min(gpu.total for gpu in found), min(gpu.free for gpu in found))
    else:
        memory = psutil.virtual_memory()
        device = Device("cpu", int(memory.total), int(memory.available))
    return Memory(device, held)


def require(context: Context, version: str, strategy: Strategy) -> Copy:
    """Return what the release takes; raises NoRoom, with the figures, or Refused if its device is missing."""
    release = context.releases.get(version)
    workers = workers_of(context)
    found = gpus.of_release(release, workers)
    copy = need.copy_of(release, workers=workers, kind="cuda" if found else "cpu")
    policy = Policy.of(context.host).memory
    if strategy == "weights":
        _require_staging(context, version, copy, MemoryPolicy() if found else policy)
        return copy
    live, idle = context.slots.live, context.slots.idle
    memory = survey(context, found)
    device = memory.found_by(strategy, live, idle)
    if not found:
        _require_unit_limit(context, f"{version} needs {need.text(copy)}", copy.least, idle)
    if fits(copy, device, policy):
        return copy
    beside = f" beside {live}, which holds {size(device.slots)}" if live and device.slots else ""
    if strategy != "swap" and live and fits(copy, memory.found_by("swap", live, idle), policy):
        hint = f"--strategy swap unloads {live} first; clients wait meanwhile"
    else:
        hint = "smaller kv_tokens, rows or dtype in the release's engine.json need less"
    available = f"{size(room(copy, device, policy))} are available on the {device.kind}"
    raise NoRoom(f"{version} needs {need.text(copy)}; {available}{beside}", hint=hint)


def workers_of(context: Context) -> int:
    """Return the number of workers of a slot by the settings of the service."""
    setting = context.host.setting("WORKERS") or "1"
    return max(1, int(setting)) if setting.isdecimal() else 1


def _require_staging(context: Context, version: str, copy: Copy, policy: MemoryPolicy) -> None:
    """Raise NoRoom unless the host has memory for the new weights beside all that is in use: they are read into it."""
    memory = survey(context, [])
    live = context.slots.live or context.slots.idle
    needs = f"the weights of {version} need {size(copy.weights)} of the host's memory"
    _require_unit_limit(context, f"{needs} beside {live}", memory.held[live] + copy.weights, live)
    device = replace(memory.device, slots=sum(memory.held.values()))
    if copy.weights > (available := room(copy, device, policy)):
        raise NoRoom(
            f"{needs}; {size(available)} are available", hint="other programs, or the other slot, use the rest"
        )


def _require_unit_limit(context: Context, needs: str, needed: int, slot: str) -> None:
    unit = context.host.unit(slot)
    limit = context.systemd.memory_max(unit)
    if limit is not None and needed > limit:
        raise NoRoom(
            f"{needs}; MemoryMax= of {unit} allows {size(limit)}",
            hint=f"systemctl {'--user ' if context.host.user else ''}edit glm@.service",
        )


def _held(workers: list[WorkerState], found: list[Gpu]) -> int:
    """Return the bytes that these workers free when they end; on GPUs the most on one device."""
    if found:
        return max(sum(gpu.used_by.get(one.pid) or one.memory for one in workers) for gpu in found)
    return sum(_proportional(one.pid) for one in workers)


def _proportional(pid: int) -> int:
    """Return the proportional set size: workers share the pages of the weights."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0
