"""All metrics of the host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from service.contract.generations import Generation, all_generations
from service.contract.slots import Slots
from service.host_metrics import builds, disks, rollouts, slots
from service.host_metrics.gpus import GpuReader
from service.settings import Settings

__all__ = ["HostCollector"]

log = logging.getLogger("service")


class HostCollector(Collector):
    """Reads the metrics of the host anew at each scrape: some small files, and NVML.

    A part that cannot be read is left out, and logged once.
    """

    def __init__(self, settings: Settings, gpus: GpuReader | None = None) -> None:
        self._settings = settings
        self._gpus = gpus or GpuReader()
        self._failed: set[str] = set()

    def describe(self) -> list[Metric]:
        """Return nothing: the names are known without a first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        settings = self._settings
        running = _running(settings.runtime)
        parts: dict[str, Callable[[], Iterator[Metric]]] = {
            "builds": lambda: builds.collect(running),
            "slots": lambda: slots.collect(Slots(settings.root), settings.runtime, running),
            "rollouts": lambda: rollouts.collect(settings.runtime),
            "disks": lambda: disks.collect(settings.root / "releases", settings.state.parent),
            "GPUs": lambda: self._gpus.collect(_slots_of_workers(running)),
        }
        for name, collect in parts.items():
            try:
                yield from [family for family in collect() if family.samples]
            except Exception:
                if name not in self._failed:
                    self._failed.add(name)
                    log.exception("the metrics of the %s cannot be read, and are left out", name)


def _running(runtime: Path) -> list[Generation]:
    """Return the generations that run, each with its running workers alone."""
    found = list(all_generations(runtime))
    for one in found:
        one.workers = one.alive_workers
    return [one for one in found if one.workers or one.is_alive]


def _slots_of_workers(running: list[Generation]) -> dict[int, str]:
    return {worker.pid: one.slot for one in running for worker in one.workers}
