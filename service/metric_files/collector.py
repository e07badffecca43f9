"""The metrics of all processes that share a directory, those that have ended included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client.multiprocess import MultiProcessCollector

from service.metric_files.directory import DAMAGED, counted, locked

__all__ = ["Collector"]

_Collector: Any = MultiProcessCollector  # the library has no types


class Collector(_Collector):  # type: ignore[misc]
    """Collects the metrics of all processes; what is no file of metrics is left out."""

    def collect(self) -> Any:
        """Return the metrics."""
        directory = Path(self._path)
        with locked(directory):  # or else after some time without: a merge that has stopped changes nothing
            files = [str(path) for path in counted(directory)]
            with suppress(*DAMAGED):
                return self.merge(files, accumulate=True)
            return self.merge(list(self._readable(files)), accumulate=True)

    def _readable(self, files: list[str]) -> Iterator[str]:
        for path in files:
            with suppress(*DAMAGED):
                self.merge([path], accumulate=True)
                yield path
