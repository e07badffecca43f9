"""The memory of the devices of a host: what each slot holds, what is free, and whether another copy would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from deploy.policy import Policy
from deploy.releases.store import Release
from deploy.rollout import gpus, memory, need
from deploy.rollout.memory import Memory
from deploy.rollout.plan import Context
from service.contract.device_memory import Device, fits

__all__ = ["DeviceView", "examine", "text", "views"]

_GIB = 1 << 30


@dataclass(frozen=True)
class DeviceView:
    """One device. Sizes are in bytes."""

    name: str
    total: int
    free: int
    slots: dict[str, int]
    """What each slot holds."""
    version: str | None
    """The live version."""
    fits: bool | None
    """Whether a deploy of an equal version would find room beside the live slot; None if nothing is live."""


def views(context: Context, resident: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the documents of `examine`; none if the devices cannot be examined."""
    try:
        return [asdict(view) for view in examine(context, resident)]
    except Exception:  # the driver and its bindings are not ours, and status must not fail for them
        return []


def examine(context: Context, resident: Mapping[str, int]) -> list[DeviceView]:
    """Return the GPUs that the live release uses, or the host's memory if it uses none.

    `resident`: the bytes of the host's memory that each slot holds. Raises GlmError.
    """
    live = context.slots.live
    version = context.slots.version(live) if live else None
    release = context.releases.get(version) if version else None
    workers = memory.workers_of(context)
    found = gpus.of_release(release, workers) if release else gpus.find()
    if found:
        return [_view(context, f"cuda:{gpu.index}", memory.survey(context, [gpu]), release) for gpu in found]
    host = psutil.virtual_memory()
    of_host = Memory(Device("cpu", int(host.total), int(host.available)), dict(resident))
    return [_view(context, "host", of_host, release)]


def _view(context: Context, name: str, found: Memory, release: Release | None) -> DeviceView:
    device, live = found.device, context.slots.live
    has_room = None
    if release is not None:
        copy = need.copy_of(release, workers=memory.workers_of(context), kind=device.kind)
        has_room = fits(copy, found.found_by("overlap", live, context.slots.idle), Policy.of(context.host).memory)
    return DeviceView(name, device.total, device.free, found.held, release.version if release else None, has_room)


def text(view: Mapping[str, Any]) -> str:
    """Return the document of a device as a line of at most 80 columns."""
    held = "".join(f", {slot} {_gib(size)}" for slot, size in view["slots"].items() if size)
    room = {None: "", True: "; another copy fits", False: "; no other copy fits"}[view["fits"]]
    return f"{view['name']}: {_gib(view['free'])} of {_gib(view['total'])} GiB free{held}{room}"


def _gib(size: int) -> str:
    number = size / _GIB
    return f"{number:.1f}" if number < 100 else f"{number:.0f}"
