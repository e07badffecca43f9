"""The machine that a run measures: card, driver, versions, and what is free."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["CODE", "Card", "card", "describe", "free_memory"]

CODE = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Card:
    """The first visible GPU; sizes in bytes."""

    name: str
    driver: str
    total: int
    free: int


def card() -> Card | None:
    """Return the first visible GPU as the driver describes it, without a CUDA context; None without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdecimal() else 0)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        name, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
        return Card(str(name), str(driver), int(memory.total), int(memory.free))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def free_memory() -> int:
    """Return the free bytes of the card, or of the host without one."""
    found = card()
    return found.free if found else int(psutil.virtual_memory().available)


def describe() -> dict[str, Any]:
    """Return what a figure depends on besides the code: the card and the versions; and the commit of the code."""
    import torch

    found = card()
    return {
        "card": found.name if found else None,
        "card_memory": found.total if found else None,
        "driver": found.driver if found else None,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": importlib.metadata.version("transformers"),
        "commit": _commit(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    """Return the commit of the working tree, with a + if it was changed; None without git."""
    try:
        git = ["git", "-C", str(CODE)]
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
