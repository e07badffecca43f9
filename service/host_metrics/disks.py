"""The room on the disks that rollouts and batches need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

__all__ = ["collect"]


def collect(releases: Path, state: Path) -> Iterator[Metric]:
    """Yield size and free bytes of the file systems of both directories; one that does not exist is left out."""
    size = GaugeMetricFamily("glm_disk_size_bytes", "Size of the file system of a directory.", labels=["directory"])
    free = GaugeMetricFamily(
        "glm_disk_free_bytes", "Free bytes of the file system of a directory.", labels=["directory"]
    )
    for name, directory in (("releases", releases), ("state", state)):
        try:
            found = os.statvfs(directory)
        except OSError:
            continue
        size.add_metric([name], found.f_blocks * found.f_frsize)
        free.add_metric([name], found.f_bavail * found.f_frsize)
    yield from (size, free)
