"""The GPUs of this host and the memory that processes hold on them, by NVML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deploy.display import count
from deploy.errors import Refused
from deploy.releases.store import Release
from deploy.rollout.need import settings_of
from service.contract.engine_settings import parse_device

__all__ = ["Gpu", "find", "of_release"]


@dataclass(frozen=True)
class Gpu:
    """One GPU. Sizes are in bytes."""

    index: int
    total: int
    free: int
    used_by: dict[int, int]
    """By pid; without the processes that NVML does not tell, such as those of another container."""


def of_release(release: Release, workers: int) -> list[Gpu]:
    """Return the GPUs that the workers would use, none for the CPU; raises Refused if the host lacks them."""
    name = settings_of(release).device
    kind, index = parse_device(name)
    if kind == "cpu":
        return []
    gpus = find()
    used = gpus[:workers] if index is None else gpus[index : index + 1]
    if kind == "cuda" and not used:
        raise Refused(
            f"{release.version} needs the device {name}, and this host has {count(len(gpus), 'visible GPU')}",
            hint="`nvidia-smi` lists them; a release whose engine.json has the device auto runs on the CPU too",
        )
    return used


def find() -> list[Gpu]:
    """Return the GPUs of this host; raises Refused if their driver does not answer."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return list(_read(pynvml))
    except pynvml.NVMLError as error:
        raise Refused(
            f"the GPUs of this host cannot be examined: {error}", hint="`nvidia-smi` should list them"
        ) from error
    finally:
        pynvml.nvmlShutdown()


def _read(nvml: Any) -> Iterator[Gpu]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        used_by = {one.pid: int(one.usedGpuMemory or 0) for one in processes}
        yield Gpu(index, int(memory.total), int(memory.free), used_by)
