"""The GPUs of this host and the memory that processes hold on them, by NVML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deploy.errors import Refused
from deploy.host import Host
from deploy.policy import Policy
from deploy.releases.store import Release
from deploy.rollout.need import settings_of
from service.contract import devices
from service.contract.devices import gpus_of_workers
from service.contract.engine_settings import parse_device

__all__ = ["Gpu", "find", "of_release", "workers_of"]


@dataclass(frozen=True)
class Gpu(devices.Gpu):
    """One GPU and its memory. Sizes are in bytes."""

    total: int
    free: int
    used_by: dict[int, int]
    """By pid; without the processes that NVML does not tell, such as those of another container."""


def of_release(release: Release, host: Host, slot: str) -> list[Gpu]:
    """Return the GPUs that the workers of `slot` would use, none for the CPU; raises Refused if the host lacks them."""
    settings = settings_of(release)
    device = settings.device
    if parse_device(device)[0] == "cpu":
        return []
    try:
        gpus = Policy.of(host).devices.of(slot, find(), host.variable("CUDA_VISIBLE_DEVICES"))
        return gpus_of_workers(device, gpus, workers_of(host), slot, settings.gpus)
    except ValueError as error:
        raise Refused(
            f"{release.version} cannot be served: {error}",
            hint=f"`nvidia-smi -L` lists the GPUs, and [devices] in {host.policy} names those of a slot; a release "
            "whose engine.json has the device auto also runs on a CPU",
        ) from error


def workers_of(host: Host) -> int:
    """Return GLM_WORKERS; 0 if it is not set: one worker for each GPU, or one on the CPU."""
    setting = host.setting("WORKERS") or "0"
    return int(setting) if setting.isdecimal() else 0


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
        yield Gpu(index, str(nvml.nvmlDeviceGetUUID(handle)), int(memory.total), int(memory.free), used_by)
