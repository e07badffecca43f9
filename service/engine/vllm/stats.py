"""vLLM's figures: its Prometheus series with the labels of this host, and the counts of `Usage`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["Labels", "Stats", "labelled", "logger_class"]


class Labels(NamedTuple):
    """Labels that every series of this host has."""

    version: str
    slot: str


@dataclass
class Stats:
    """Counts since the start; see `Usage`."""

    steps: int = 0
    step_sequences: int = 0
    image_queries: int = 0
    image_hits: int = 0

    def record(self, scheduler: Any, images: Any) -> None:
        """Add vLLM's figures of one step; each may be None."""
        if scheduler is not None:
            self.steps += 1
            self.step_sequences += scheduler.num_running_reqs
        if images is not None:
            self.image_queries += images.queries
            self.image_hits += images.hits


class _Child:
    """One set of vLLM's labels of a metric. Each use has the labels of this host at that time."""

    def __init__(self, of_now: Callable[[], Any]) -> None:
        self._of_now = of_now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of_now(), name)


def labelled(kind: Callable[..., Any], labels: Callable[[], Labels]) -> Callable[..., Any]:
    """Return what vLLM calls in place of a class of prometheus_client: its metrics have more labels."""

    class Labelled:
        def __init__(
            self, name: str, documentation: str, labelnames: Any = (), multiprocess_mode: str = "", **more: Any
        ) -> None:
            if multiprocess_mode:  # one of those whose files are removed when the process has ended
                more["multiprocess_mode"] = "livesum"
            self._metric = kind(name, documentation, [*labelnames, *Labels._fields], **more)

        def labels(self, *values: Any, **named: Any) -> _Child:
            if named:
                return _Child(lambda: self._metric.labels(**named, **labels()._asdict()))
            return _Child(lambda: self._metric.labels(*values, *labels()))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._metric.labels(*labels()), name)

    return Labelled


def logger_class(stats: Stats, labels: Callable[[], Labels]) -> Any:
    """Return a class of vLLM's stat loggers that fills `stats`, and labels the series."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    classes: Mapping[str, Any] = {
        "_gauge_cls": labelled(Gauge, labels),
        "_counter_cls": labelled(Counter, labels),
        "_histogram_cls": labelled(Histogram, labels),
    }

    class StatLogger(PrometheusStatLogger):  # type: ignore[misc]  # vLLM is not installed where types are checked
        _gauge_cls, _counter_cls, _histogram_cls = classes.values()

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            stats.record(scheduler_stats, mm_cache_stats)
            super().record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)

    for name in [name for name in vars(PrometheusStatLogger) if name.endswith("_cls") and name not in classes]:
        part = getattr(PrometheusStatLogger, name)
        setattr(
            StatLogger, name, type(part.__name__, (part,), {key: classes[key] for key in classes if hasattr(part, key)})
        )
    return StatLogger
