"""The memory of the devices of a host: what each slot holds, what is free, and whether another copy would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from deploy.releases.store import Release
from deploy.rollout import gpus, memory, need
from deploy.rollout.memory import Memory
from deploy.rollout.plan import Context
from service.contract.device_memory import fits

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
    """Whether a deploy of an equal version would find room beside the live slot; None if nothing is live, and for a GPU
    that the idle slot does not use."""


def views(context: Context, resident: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the documents of `examine`; none if the devices cannot be examined."""
    try:
        return [asdict(view) for view in examine(context, resident)]
    except Exception:  # the driver and its bindings are not ours, and status must not fail for them
        return []


def examine(context: Context, resident: Mapping[str, int]) -> list[DeviceView]:
    """Return the GPUs that the live release uses, or would use in the idle slot, or the host's memory if it uses none.

    `resident`: the bytes of the host's memory that each slot holds. Raises GlmError.
    """
    live, idle = context.slots.live, context.slots.idle
    version = context.slots.version(live) if live else None
    release = context.releases.get(version) if version else None
    if release is None or live is None:
        found = {gpu.index: gpu for gpu in gpus.find()}
        candidate = []
    else:
        candidate = gpus.of_release(release, context.host, idle)
        found = {gpu.index: gpu for gpu in [*gpus.of_release(release, context.host, live), *candidate]}
    if found:
        names = {gpu.index for gpu in candidate}
        return [
            _view(context, gpu.label, memory.survey(context, gpu), release if gpu.index in names else None, version)
            for _, gpu in sorted(found.items())
        ]
    of_host = replace(memory.survey(context), held=dict(resident))
    return [_view(context, "host", of_host, release, version)]


def _view(context: Context, name: str, found: Memory, release: Release | None, version: str | None) -> DeviceView:
    """Return the view of a device; `release`: the one that a candidate would load onto it."""
    device, has_room = found.device, None
    if release is not None:
        copy = need.copy_of(release, workers=gpus.workers_of(context.host) or 1, kind=device.kind)
        has_room = fits(copy, found.found_by("overlap", context.slots.live, context.slots.idle), found.policy)
    return DeviceView(name, device.total, device.free, found.held, version, has_room)


def text(view: Mapping[str, Any]) -> str:
    """Return the document of a device as a line of at most 80 columns."""
    held = "".join(f", {slot} {_gib(size)}" for slot, size in view["slots"].items() if size)
    room = {None: "", True: "; another copy fits", False: "; no other copy fits"}[view["fits"]]
    return f"{view['name']}: {_gib(view['free'])} of {_gib(view['total'])} GiB free{held}{room}"


def _gib(size: int) -> str:
    number = size / _GIB
    return f"{number:.1f}" if number < 100 else f"{number:.0f}"
