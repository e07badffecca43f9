"""Whether the device of a release has the memory for it: beside the live slot, or in its place."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import psutil

from deploy.display import size
from deploy.errors import Refused
from deploy.journal.record import Strategy
from deploy.policy import Policy
from deploy.rollout import gpus, need
from deploy.rollout.gpus import Gpu
from deploy.rollout.plan import Context
from service.contract.device_memory import Copy, Device, room
from service.contract.generations import current
from service.contract.memory_policy import MemoryPolicy
from service.contract.slots import SLOTS
from service.contract.worker_state import WorkerState

__all__ = ["Memory", "NoRoom", "require", "require_asleep", "survey"]


class NoRoom(Refused):
    """The memory does not hold the release; another strategy may need less."""


@dataclass(frozen=True)
class Memory:
    """One device, how it is shared, and what each slot holds of it, in bytes."""

    device: Device
    policy: MemoryPolicy
    held: dict[str, int]

    def found_by(self, strategy: Strategy, live: str | None, idle: str) -> Device:
        """Return the device as the candidate finds it: the idle slot has been freed, by a swap the live slot too."""
        freed = self.held[idle] + (self.held[live] if live and strategy == "swap" else 0)
        stays = self.held[live] if live and strategy != "swap" else 0
        return replace(self.device, free=self.device.free + freed, slots=stays)


def survey(context: Context, gpu: Gpu | None = None) -> Memory:
    """Return the memory of a GPU, of the host without one."""
    workers = {
        slot: generation.alive_workers if (generation := current(context.host.runtime, slot)) else [] for slot in SLOTS
    }
    held = {slot: sum(_held(worker, gpu) for worker in each) for slot, each in workers.items()}
    policy = Policy.of(context.host)
    if gpu:
        share = policy.memory.on(gpu, policy.devices)
        return Memory(Device("cuda", gpu.total, gpu.free), share, held)
    memory = psutil.virtual_memory()
    return Memory(Device("cpu", int(memory.total), int(memory.available)), policy.memory, held)


def require(context: Context, version: str, strategy: Strategy) -> Copy:
    """Return what the release takes; raises NoRoom, with the figures, or Refused if its device is missing."""
    release = context.releases.get(version)
    live, idle = context.slots.live, context.slots.idle
    found = gpus.of_release(release, context.host, live if live and strategy == "weights" else idle)
    copy = need.copy_of(release, workers=gpus.workers_of(context.host) or 1, kind="cuda" if found else "cpu")
    if strategy == "weights":
        if not found:  # on a GPU they are staged where there is room, else copied from the files
            _require_staging(context, version, copy)
        return copy
    if not found:
        _require_unit_limit(context, f"{version} needs {need.text(copy)}", copy.least, idle)
    devices = [survey(context, gpu) for gpu in found] or [survey(context)]

    def available(memory: Memory, strategy: Strategy) -> int:
        return room(copy, memory.found_by(strategy, live, idle), memory.policy)

    tightest = min(devices, key=lambda memory: available(memory, strategy))
    if copy.least <= available(tightest, strategy):
        return copy
    held = tightest.found_by(strategy, live, idle).slots
    beside = f" beside {live}, which holds {size(held)}" if live and held else ""
    if strategy != "swap" and live and all(copy.least <= available(memory, "swap") for memory in devices):
        hint = f"--strategy swap unloads {live} first; clients wait meanwhile"
    else:
        hint = "smaller kv_tokens, rows or dtype in the release's engine.json need less"
    has = f"{size(available(tightest, strategy))} are available on the {tightest.device.kind}"
    raise NoRoom(f"{version} needs {need.text(copy)}; {has}{beside}", hint=hint)


def require_asleep(context: Context, slot: str, workers: int) -> None:
    """Raise NoRoom unless the host has memory for the weights of each of `workers` of the slot, beside all in use."""
    version = context.slots.version(slot) or ""
    copy = need.copy_of(context.releases.get(version), workers=1, kind="cpu")
    _require_host_memory(context, version, replace(copy, weights=copy.weights * workers), slot)


def _require_staging(context: Context, version: str, copy: Copy) -> None:
    """Raise NoRoom unless the host has memory for the new weights: they are read into it."""
    _require_host_memory(context, version, copy, context.slots.live or context.slots.idle)


def _require_host_memory(context: Context, version: str, copy: Copy, slot: str) -> None:
    """Raise NoRoom unless the host has memory for weights beside all that is in use, and the unit may have it."""
    memory = survey(context)
    needs = f"the weights of {version} need {size(copy.weights)} of the host's memory"
    _require_unit_limit(context, f"{needs} beside {slot}", memory.held[slot] + copy.weights, slot)
    device = replace(memory.device, slots=sum(memory.held.values()))
    if copy.weights > (available := room(copy, device, memory.policy)):
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


def _held(worker: WorkerState, gpu: Gpu | None) -> int:
    """Return the bytes of the GPU, or of the host without one, that are free when the worker has ended."""
    if gpu is None:
        return _proportional(worker.pid)
    return gpu.used_by.get(worker.pid) or worker.memory_on(gpu.label)


def _proportional(pid: int) -> int:
    """Return the proportional set size of a worker and of its processes: workers share the pages of the weights."""
    total = 0
    with suppress(psutil.Error):
        worker = psutil.Process(pid)
        for process in [worker, *worker.children(recursive=True)]:
            with suppress(psutil.Error):
                total += int(process.memory_full_info().pss)
    return total
