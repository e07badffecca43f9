"""Prometheus metrics. With PROMETHEUS_MULTIPROC_DIR set, a scrape covers all processes that share the directory.

The unit sets it to one directory for all generations of the host, so that a scrape covers the whole rollout, whichever
worker serves it. `forget_worker` must be called for every worker that exits; otherwise its gauges remain in the sums.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# prometheus_client reads the variable at import and opens files in the directory when the first metric is created.
if _directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    Path(_directory).mkdir(parents=True, exist_ok=True)

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.engine import Usage

__all__ = ["CONTENT_TYPE", "Metrics", "forget_worker", "render", "set_load_seconds"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LABELS = ("version", "slot")

_requests = Counter("glm_requests_total", "Ended requests, by status.", (*LABELS, "route", "status"))
_seconds = Histogram("glm_request_seconds", "From head to last byte.", (*LABELS, "route"), buckets=SECONDS)
_first = Histogram("glm_time_to_first_token_seconds", "Time to the first token.", LABELS, buckets=SECONDS)
_in_flight = Gauge("glm_requests_in_flight", "Requests in flight.", LABELS, multiprocess_mode="livesum")
_tokens = Counter("glm_generated_tokens_total", "Generated tokens of completed answers.", LABELS)
_running = Gauge("glm_engine_running", "Answers being generated.", LABELS, multiprocess_mode="livesum")
_queued = Gauge("glm_engine_waiting", "Answers waiting for a row.", LABELS, multiprocess_mode="livesum")
_kv_used = Gauge("glm_engine_kv_tokens", "Reserved tokens of the KV cache.", LABELS, multiprocess_mode="livesum")
_kv_all = Gauge("glm_engine_kv_capacity_tokens", "Tokens the KV cache can hold.", LABELS, multiprocess_mode="livesum")
_mirrored = Counter("glm_mirrored_total", "Mirrored requests, by outcome.", (*LABELS, "outcome"))
_load = Gauge("glm_model_load_seconds", "From start to ready.", LABELS, multiprocess_mode="livemax")
_load_parts = Gauge("glm_model_load_part_seconds", "Parts of it.", (*LABELS, "part"), multiprocess_mode="livemax")


@dataclass(frozen=True)
class Metrics:
    """Updates the metrics labelled with one version and slot."""

    version: str
    slot: str

    def observe_first_token(self, seconds: float) -> None:
        """Observe the time from the call of the engine to the first piece of an answer."""
        _first.labels(self.version, self.slot).observe(seconds)

    def count_tokens(self, count: int) -> None:
        """Count the generated tokens of a completed answer."""
        _tokens.labels(self.version, self.slot).inc(count)

    def set_engine_usage(self, usage: Usage) -> None:
        """Set the engine's gauges. They cannot be read during a scrape, which another worker may serve."""
        labels = (self.version, self.slot)
        _running.labels(*labels).set(usage.running)
        _queued.labels(*labels).set(usage.waiting)
        _kv_used.labels(*labels).set(usage.kv_tokens)
        _kv_all.labels(*labels).set(usage.kv_capacity)

    def count_mirrored(self, outcome: str) -> None:
        """Count a request that was selected for mirroring."""
        _mirrored.labels(self.version, self.slot, outcome).inc()

    def request_started(self) -> None:
        """Add a request to those in flight."""
        _in_flight.labels(self.version, self.slot).inc()

    def move_request(self, version: str) -> Metrics:
        """Move a request in flight to the version that answered it, and return that version's metrics."""
        if version == self.version:
            return self
        other = Metrics(version, self.slot)
        _in_flight.labels(self.version, self.slot).dec()
        other.request_started()
        return other

    def request_ended(self, route: str, status: str, seconds: float) -> None:
        """Remove a request from those in flight, count it and observe its duration."""
        _in_flight.labels(self.version, self.slot).dec()
        _requests.labels(self.version, self.slot, route, status).inc()
        _seconds.labels(self.version, self.slot, route).observe(seconds)


def render() -> bytes:
    """Return the metrics in Prometheus' text format, with those of all processes that share the directory, if set."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def set_load_seconds(version: str, slot: str, parts: Mapping[str, float]) -> None:
    """Set the time in seconds that a worker's load took, in all and by part."""
    _load.labels(version, slot).set(sum(parts.values()))
    for part, seconds in parts.items():
        _load_parts.labels(version, slot, part).set(seconds)


def forget_worker(pid: int) -> None:
    """Remove the live gauges of a worker that has exited; its counters remain."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
