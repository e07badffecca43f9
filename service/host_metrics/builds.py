"""The program and its libraries, and the releases that run."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata

from prometheus_client.core import GaugeMetricFamily, Metric

from service.contract.generations import Generation

__all__ = ["collect"]

_PACKAGES = {"version": "glm-handover", "torch": "torch", "transformers": "transformers"}


def collect(running: Iterable[Generation]) -> Iterator[Metric]:
    """Yield what is installed, and what each running generation serves."""
    versions = _versions()
    build = GaugeMetricFamily("glm_build_info", "Version of the program and of its libraries.", labels=list(versions))
    build.add_metric(list(versions.values()), 1)
    yield build
    release = GaugeMetricFamily(
        "glm_release_info", "Release that a running generation has.", labels=["slot", "version", "generation"]
    )
    for one in running:
        release.add_metric([one.slot, one.version, str(one.generation)], 1)
    yield release


@cache
def _versions() -> dict[str, str]:
    return {label: _version(name) for label, name in _PACKAGES.items()} | {"python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a copy of the code
        return "unknown"
