"""The GPUs of a generation: found through NVML, which leaves CUDA alone, and given to the workers, one each.

A process that has used CUDA cannot be forked, so that the master only asks NVML. Each worker sees its GPU alone: torch
reads CUDA_VISIBLE_DEVICES when it uses CUDA for the first time, and not when it is imported.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from service.contract.devices import Devices, Gpu, gpus_of_workers, is_mig
from service.contract.engine_settings import parse_device
from service.model.release import Release
from service.settings import Settings

__all__ = ["GpusError", "find", "free", "on_pinned_gpu", "pin"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class GpusError(Exception):
    """The release cannot be served with the GPUs of the slot; the message gives the reason."""


def find(release: Release, settings: Settings) -> tuple[Gpu, ...]:
    """Return the GPU of each worker; none if they are not pinned: on the CPU, or for part of a GPU (MIG).

    Raises GpusError.
    """
    visible = os.environ.get(_VISIBLE)
    if parse_device(release.engine.device)[0] == "cpu" or (visible and is_mig(visible)):
        return ()
    gpus = _of_host()
    try:
        devices = Devices.read(settings.policy)
        if not gpus and devices == Devices():  # an engine that needs one reports it
            return ()
        found = devices.of(settings.slot, gpus, visible)
        each = release.engine.gpus
        used = gpus_of_workers(release.engine.device, found, settings.workers, settings.slot, each)
        return tuple(
            replace(first, peers=tuple(used[at + 1 : at + each])) for at, first in enumerate(used) if at % each == 0
        )
    except OSError as error:
        raise GpusError(
            f"{settings.policy} cannot be read: {error.strerror}; the server needs [devices] in it, and its group must "
            "be able to read the file"
        ) from error
    except ValueError as error:
        raise GpusError(f"{settings.policy}: {error}") from error


def free(gpus: Sequence[Gpu], held: Iterable[Gpu | None]) -> Gpu | None:
    """Return the GPU for the next worker: the first of those that the fewest workers hold; None without GPUs.

    `held`: those of the running workers. One that is replaced leaves its GPU free. Only after HUP or TTIN, which start
    workers beside the others, may two have the same.
    """
    holders = Counter(held)
    return min(gpus, key=holders.__getitem__, default=None)


def pin(gpu: Gpu) -> None:
    """Make `gpu`, with its peers, all that this process and its children see. To be called before CUDA is used."""
    os.environ[_VISIBLE] = ",".join(one.uuid for one in gpu.all)


def on_pinned_gpu(release: Release) -> Release:
    """Return `release` with the device of a pinned worker: `cuda:N` is the only one that it sees."""
    kind, _ = parse_device(release.engine.device)
    return replace(release, engine=replace(release.engine, device=kind))


def _of_host() -> list[Gpu]:
    """Return the GPUs of this host that answer; none without NVML."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    found = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):  # one that is defective; the others can be used
                found.append(Gpu(index, str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))))
    finally:
        pynvml.nvmlShutdown()
    return found
