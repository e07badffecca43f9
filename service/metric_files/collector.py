"""The metrics of all processes that share a directory, those that have ended included.

A process that does not have a gauge any more sets it to NaN: prometheus_client cannot take a value out of a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client.multiprocess import MultiProcessCollector

from service.metric_files.directory import DAMAGED, counted, locked

__all__ = ["Collector"]

_Collector: Any = MultiProcessCollector  # the library has no types


class Collector(_Collector):  # type: ignore[misc]
    """Collects the metrics of all processes; what is no file of metrics, and gauges that are NaN, are left out."""

    def collect(self) -> Any:
        """Return the metrics."""
        directory = Path(self._path)
        with locked(directory):  # or else after some time without: a merge that has stopped changes nothing
            files = [str(path) for path in counted(directory)]
            with suppress(*DAMAGED):
                return self.merge(files, accumulate=True)
            return self.merge(list(self._readable(files)), accumulate=True)

    @staticmethod
    def merge(files: list[str], accumulate: bool = True) -> Any:
        """Return the metrics of these files."""
        metrics = _Collector._read_metrics(files)  # noqa: SLF001
        for name, metric in list(metrics.items()):
            if metric.type == "gauge":
                metric.samples = [sample for sample in metric.samples if not math.isnan(sample.value)]
                if not metric.samples:
                    del metrics[name]
        return _Collector._accumulate_metrics(metrics, accumulate)  # noqa: SLF001

    def _readable(self, files: list[str]) -> Iterator[str]:
        for path in files:
            with suppress(*DAMAGED):
                self.merge([path], accumulate=True)
                yield path
