"""The slots: which one serves, with which share, and the workers of their generations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

from service.contract.canary_file import CanaryFile
from service.contract.generations import Generation
from service.contract.slots import SLOTS, Slots

__all__ = ["collect"]

_WHOLE = 100  # percent


def collect(slots: Slots, runtime: Path, running: Sequence[Generation]) -> Iterator[Metric]:
    """Yield the metrics of both slots, and of the generations in `running`, whose workers all run."""
    accepting = {one.slot for one in running for worker in one.workers if worker.gate == "open"}
    serving, shares = slots.live, _shares(slots.live, runtime)
    live = GaugeMetricFamily("glm_slot_live", "Whether the slot is the one that serves.", labels=["slot"])
    share = GaugeMetricFamily(
        "glm_slot_share_ratio", "Part of the clients' requests that the slot answers.", labels=["slot"]
    )
    gate = GaugeMetricFamily(
        "glm_slot_gate_open", "Whether a worker of the slot accepts connections of clients.", labels=["slot"]
    )
    for slot in SLOTS:
        live.add_metric([slot], slot == serving)
        share.add_metric([slot], shares.get(slot, 0.0))
        gate.add_metric([slot], slot in accepting)
    yield from (live, share, gate)
    workers = GaugeMetricFamily(
        "glm_generation_workers", "Running workers of a generation, by phase.", labels=["slot", "generation", "phase"]
    )
    for one in running:
        for phase, count in Counter(worker.phase for worker in one.workers).items():
            workers.add_metric([one.slot, str(one.generation), phase], count)
    yield workers


def _shares(live: str | None, runtime: Path) -> dict[str, float]:
    canary = CanaryFile(runtime).read()
    if live is None:
        return {}
    if canary is None or canary.slot == live:
        return {live: 1.0}
    return {live: 1 - canary.weight / _WHOLE, canary.slot: canary.weight / _WHOLE}
