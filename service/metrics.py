"""Prometheus metrics. With PROMETHEUS_MULTIPROC_DIR set, a scrape covers all processes that share the directory.

The unit sets it to one directory for all generations of the host, so that a scrape covers the whole rollout, whichever
worker serves it. A worker that exits leaves its counters to the file of all ended ones, and its gauges are removed: by
`forget_worker`, or by `forget_ended` and the next scrape if the master was killed too. The counters of a version and
slot that nothing runs any more go away after an hour.

What is known of the host as a whole (slots, rollouts, GPUs) is read at the scrape; see `HOST`.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

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

from service import metric_files
from service.contract.worker_state import Ledger
from service.engine import Finish, Usage

__all__ = [
    "CONTENT_TYPE",
    "HOST",
    "Metrics",
    "count_error",
    "count_request",
    "flush",
    "forget_ended",
    "forget_worker",
    "render",
    "set_device",
    "set_load_seconds",
]

metric_files.install()

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LABELS = ("version", "slot")
HOST = CollectorRegistry()
"""Collectors of the host, which every worker shows alike. They are asked at each scrape, in a thread."""
_TICKS = 1 << 16
"""Of a second. Durations are added in whole ticks: their floating-point sums are exact up to 2^37 s, in any order.
Otherwise a sum over processes could decrease by its last bit, which Prometheus takes for a restart."""


class _SummedHistogram(Histogram):
    """A histogram to which many observations are added at once."""

    def add(self, seconds: float, counts: Sequence[int]) -> None:
        """Add the sum of the observations, and how many of them are in each bucket."""
        self._sum.inc(_ticks(seconds))
        for bucket, count in zip(self._buckets, counts, strict=False):  # there is room for the most buckets
            if count:
                bucket.inc(count)


_requests = Counter("glm_requests_total", "Ended requests, by route and status.", (*LABELS, "route", "status"))
_seconds = _SummedHistogram(
    "glm_request_seconds",
    "Time from the head of a request to the last byte of its answer.",
    (*LABELS, "route"),
    buckets=SECONDS,
)
_first = _SummedHistogram(
    "glm_time_to_first_token_seconds", "Time from the start of generation to the first token.", LABELS, buckets=SECONDS
)
_per_token = _SummedHistogram(
    "glm_time_per_output_token_seconds",
    "Mean time between two tokens of an answer, after its first.",
    LABELS,
    buckets=TOKEN_SECONDS,
)
_queue_wait = _SummedHistogram(
    "glm_queue_wait_seconds",
    "Time from the arrival of an answer in the engine until it had a row.",
    LABELS,
    buckets=SECONDS,
)
_in_flight = Gauge("glm_requests_in_flight", "Requests in flight.", LABELS, multiprocess_mode="livesum")
_tokens = Counter("glm_generated_tokens_total", "Generated tokens of completed answers.", LABELS)
_prompt_tokens = Counter("glm_prompt_tokens_total", "Prompt tokens of completed answers.", LABELS)
_errors = Counter("glm_errors_total", "Requests that ended with an error, by its code or type.", (*LABELS, "kind"))
_running = Gauge("glm_engine_running", "Answers being generated.", LABELS, multiprocess_mode="livesum")
_queued = Gauge("glm_engine_waiting", "Answers waiting for a row.", LABELS, multiprocess_mode="livesum")
_kv_used = Gauge("glm_engine_kv_tokens", "Reserved tokens of the KV cache.", LABELS, multiprocess_mode="livesum")
_kv_all = Gauge("glm_engine_kv_capacity_tokens", "Tokens the KV cache can hold.", LABELS, multiprocess_mode="livesum")
_engine_counts = {
    "steps": Counter("glm_engine_steps_total", "Steps of the engine, forward passes over all that runs.", LABELS),
    "step_sequences": Counter("glm_engine_step_sequences_total", "Sequences of all steps of the engine.", LABELS),
    "image_hits": Counter("glm_image_cache_hits_total", "Images whose features were in the cache.", LABELS),
    "image_misses": Counter("glm_image_cache_misses_total", "Images whose features had to be computed.", LABELS),
}
_connection_counts = {
    "handed_out": Counter(
        "glm_connections_handed_over_total", "Client connections that were passed to another process.", LABELS
    ),
    "adopted": Counter(
        "glm_connections_adopted_total", "Client connections that were received from another process.", LABELS
    ),
}
_counted: dict[str, int] = {}
"""Of these counts, which the worker keeps itself: how much of each is in the metrics."""
_mirrored = Counter("glm_mirrored_total", "Mirrored requests, by outcome.", (*LABELS, "outcome"))
_load = Gauge(
    "glm_model_load_seconds", "Time from the start of a worker until it was ready.", LABELS, multiprocess_mode="livemax"
)
_load_parts = Gauge(
    "glm_model_load_part_seconds",
    "Time that a part of the load of a worker took.",
    (*LABELS, "part"),
    multiprocess_mode="livemax",
)
_workers = Gauge(
    "glm_workers", "Workers that have loaded their model, by device.", ("slot", "device"), multiprocess_mode="livesum"
)

_GAUGES = (_in_flight, _running, _queued, _kv_used, _kv_all, _load, _load_parts)
"""Of a version, which a worker has for as long as its model has the weights."""

Metric = TypeVar("Metric", Counter, Gauge, Histogram)


@cache
def _of(metric: Metric, *labels: str) -> Metric:
    """Return the metric with these labels; `labels` itself takes as long as an update."""
    return metric.labels(*labels)


@dataclass(frozen=True)
class Metrics:
    """Updates the metrics labelled with one version and slot."""

    version: str
    slot: str

    def observe_first_token(self, seconds: float) -> None:
        """Observe the time from the call of the engine to the first piece of an answer, at the next `flush`."""
        _observe(_first, (self.version, self.slot), seconds)

    def count_tokens(self, count: int) -> None:
        """Count the generated tokens of a completed answer, at the next `flush`."""
        _counts[_tokens, (self.version, self.slot)] += count

    def observe_finish(self, finish: Finish, seconds: float) -> None:
        """Observe a completed answer, at the next `flush`; `seconds`: from its first token to its last."""
        labels = (self.version, self.slot)
        self.count_tokens(finish.completion_tokens)
        _counts[_prompt_tokens, labels] += finish.prompt_tokens
        _observe(_queue_wait, labels, finish.waited)
        if finish.completion_tokens > 1:
            _observe(_per_token, labels, seconds / (finish.completion_tokens - 1), TOKEN_SECONDS)

    def set_engine_usage(self, usage: Usage) -> None:
        """Set the engine's gauges, and add its counts. Those of others cannot be read by the worker that is scraped."""
        self._add(_engine_counts, vars(usage))
        labels = (self.version, self.slot)
        _of(_running, *labels).set(usage.running)
        _of(_queued, *labels).set(usage.waiting)
        _of(_kv_used, *labels).set(usage.kv_tokens)
        _of(_kv_all, *labels).set(usage.kv_capacity)

    def add_connections(self, ledger: Ledger) -> None:
        """Add the connections that were passed on and received since the last call."""
        self._add(_connection_counts, vars(ledger))

    def _add(self, counters: Mapping[str, Counter], counts: Mapping[str, int]) -> None:
        """Add what the counts, which never decrease, have grown since the last call."""
        for name, counter in counters.items():
            if (more := counts[name] - _counted.get(name, 0)) > 0:
                _counted[name] = counts[name]
                _of(counter, self.version, self.slot).inc(more)

    def count_mirrored(self, outcome: str) -> None:
        """Count a request that was selected for mirroring."""
        _of(_mirrored, self.version, self.slot, outcome).inc()

    def set_in_flight(self, requests: int) -> None:
        """Set the number of requests in flight."""
        _of(_in_flight, self.version, self.slot).set(requests)

    def withdraw(self) -> None:
        """Remove the gauges of this version, whose weights this process has no more. Its counters stay."""
        for gauge in _GAUGES:
            for labels in list(gauge._metrics):  # noqa: SLF001
                if labels[: len(LABELS)] == (self.version, self.slot):
                    gauge.labels(*labels).set(math.nan)  # in the file, from which it cannot be removed
                    gauge.remove(*labels)
        _of.cache_clear()


@dataclass
class _Observed:
    """The observations since the last flush."""

    seconds: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    """By bucket; the one after the last bound has none."""


_Labels = tuple[str, ...]
_counts: defaultdict[tuple[Counter, _Labels], int] = defaultdict(int)
"""Of requests since the last flush: an update of a metric that processes share takes 2 µs, and a chat needs ten."""
_observed: defaultdict[tuple[_SummedHistogram, _Labels], _Observed] = defaultdict(_Observed)


def _observe(histogram: _SummedHistogram, labels: _Labels, seconds: float, bounds: Sequence[float] = SECONDS) -> None:
    observed = _observed[histogram, labels]
    observed.seconds += seconds
    observed.counts[bisect_left(bounds, seconds)] += 1


def count_request(version: str, slot: str, route: str, status: str, seconds: float) -> None:
    """Count a request that has ended, and its duration from its head to the end of the answer, at the next `flush`."""
    _counts[_requests, (version, slot, route, status)] += 1
    _observe(_seconds, (version, slot, route), seconds)


def count_error(version: str, slot: str, kind: str) -> None:
    """Count a request that ended with an error of this kind, one of a fixed set, at the next `flush`."""
    _counts[_errors, (version, slot, kind)] += 1


def flush() -> None:
    """Add what was counted and observed since the last call. A worker calls it every 20 ms, and at its end."""
    for (counter, labels), count in _counts.items():
        _of(counter, *labels).inc(count)
    _counts.clear()
    for (histogram, labels), observed in _observed.items():
        _of(histogram, *labels).add(observed.seconds, observed.counts)
    _observed.clear()


def render() -> bytes:
    """Return the metrics in Prometheus' text format, with those of all processes that share the directory, if set."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return generate_latest(REGISTRY) + generate_latest(HOST)
    forget_ended()
    registry = CollectorRegistry()
    metric_files.Collector(registry)
    return generate_latest(registry) + generate_latest(HOST)


def _ticks(seconds: float) -> float:
    return round(seconds * _TICKS) / _TICKS


def set_load_seconds(version: str, slot: str, parts: Mapping[str, float]) -> None:
    """Set the time in seconds that a worker's load took, in all and by part."""
    _load.labels(version, slot).set(sum(parts.values()))
    for part, seconds in parts.items():
        _load_parts.labels(version, slot, part).set(seconds)


def set_device(slot: str, device: str) -> None:
    """Count this worker on its device, `cpu` or `cuda:N`, until it ends."""
    _workers.labels(slot, device).set(1)


def forget_worker(pid: int) -> None:
    """Remove the gauges of a worker that has exited, or is about to, and merge the counters of all that have."""
    if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        metric_files.remove_gauges(Path(directory), pid)
        metric_files.merge_ended(Path(directory))


def forget_ended() -> None:
    """Remove the gauges of all workers that have exited, and merge their counters."""
    if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        metric_files.merge_ended(Path(directory))
