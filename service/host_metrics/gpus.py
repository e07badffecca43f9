"""The GPUs of the host as NVML shows them: load, memory, temperature and power."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from service.contract.devices import Gpu

__all__ = ["GpuReader"]

_WAIT = 1.0  # seconds; NVML answers within milliseconds, but not if the driver hangs
_WHOLE = 100  # percent


@dataclass
class _Reading:
    """What NVML tells of one GPU; what it does not know is absent."""

    device: str
    values: dict[str, float] = field(default_factory=dict)
    used_by: dict[int, int] = field(default_factory=dict)
    """Bytes, by pid."""


_FIGURES = {
    "glm_gpu_utilization_ratio": "Part of the time in which the GPU computed.",
    "glm_gpu_memory_used_bytes": "Used memory of the GPU.",
    "glm_gpu_memory_size_bytes": "Memory of the GPU.",
    "glm_gpu_temperature_celsius": "Temperature of the GPU.",
    "glm_gpu_power_watts": "Power that the GPU draws.",
}


class GpuReader:
    """Reads NVML in a thread of its own: if the driver hangs, the scrapes go on without the GPUs.

    Without NVML, or without a GPU, there are none of the metrics.
    """

    def __init__(self, wait: float = _WAIT) -> None:
        self._wait = wait
        self._readings: list[_Reading] = []
        self._thread: threading.Thread | None = None
        self._nvml: Any = None
        self._is_absent = False

    def collect(self, slots: Mapping[int, str]) -> Iterator[Metric]:
        """Yield the metrics; `slots` are those of the workers, by pid."""
        readings = self._read()
        if not readings:
            return
        for name, text in _FIGURES.items():
            family = GaugeMetricFamily(name, text, labels=["device"])
            for one in readings:
                if name in one.values:
                    family.add_metric([one.device], one.values[name])
            yield family
        memory = GaugeMetricFamily(
            "glm_gpu_slot_memory_bytes", "Memory that the workers of a slot hold on the GPU.", labels=["device", "slot"]
        )
        for one in readings:
            held: dict[str, int] = {}
            for pid, size in one.used_by.items():
                if pid in slots:
                    held[slots[pid]] = held.get(slots[pid], 0) + size
            for slot, size in sorted(held.items()):
                memory.add_metric([one.device, slot], size)
        yield memory

    def _read(self) -> list[_Reading]:
        if self._is_absent:
            return []
        if self._thread is None or not self._thread.is_alive():
            self._readings = []
            self._thread = threading.Thread(target=self._update, name="nvml", daemon=True)
            self._thread.start()
            self._thread.join(self._wait)
        return [] if self._thread.is_alive() else self._readings

    def _update(self) -> None:
        import pynvml

        try:
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml = pynvml  # once: it takes longer than all else, and the engine's device stays open anyway
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError:
            self._is_absent = self._nvml is None
            return
        readings = []
        for index in range(count):
            with suppress(pynvml.NVMLError):  # one that is defective
                readings.append(_reading(pynvml, index))
        self._readings = readings


def _reading(nvml: Any, index: int) -> _Reading:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    found = _Reading(Gpu(index, "").label)

    def note(name: str, read: Callable[[], float]) -> None:
        with suppress(nvml.NVMLError):  # not every GPU tells all of it
            found.values[name] = float(read())

    note("glm_gpu_utilization_ratio", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / _WHOLE)
    note("glm_gpu_memory_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)
    note("glm_gpu_memory_size_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total)
    note("glm_gpu_temperature_celsius", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    note("glm_gpu_power_watts", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
    with suppress(nvml.NVMLError):
        for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            found.used_by[one.pid] = int(one.usedGpuMemory or 0)
    return found
