"""NVML of a host with $FAKE_GPUS GPUs: put on PYTHONPATH, or into sys.modules, in place of the real module.

The free memory of GPU N is N + 1 GiB, and no process uses any.
"""

from __future__ import annotations

import os
from types import SimpleNamespace


class NVMLError(Exception):
    """As in the real module."""


def uuid(index: int) -> str:
    """The UUID of a GPU; the numbers in it fall as those of the GPUs rise."""
    return f"GPU-{0xFFFF - index:08x}-0000-4000-8000-000000000000"


def nvmlInit() -> None:  # noqa: N802
    if "FAKE_GPUS" not in os.environ:
        raise NVMLError("Driver Not Loaded")


def nvmlShutdown() -> None:  # noqa: N802
    pass


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return int(os.environ["FAKE_GPUS"])


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    return index


def nvmlDeviceGetUUID(handle: int) -> str:  # noqa: N802
    return uuid(handle)


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:  # noqa: N802
    free = (handle + 1) << 30
    return SimpleNamespace(total=80 << 30, free=free, used=(80 << 30) - free)


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[SimpleNamespace]:  # noqa: N802
    return []


NVML_TEMPERATURE_GPU = 0


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(gpu=25 * (handle + 1), memory=0)


def nvmlDeviceGetTemperature(handle: int, _sensor: int) -> int:  # noqa: N802
    return 40 + handle


def nvmlDeviceGetPowerUsage(handle: int) -> int:  # noqa: N802
    """In milliwatts; a second GPU does not tell it."""
    if handle == 1:
        raise NVMLError("Not Supported")
    return 70_500
