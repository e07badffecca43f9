"""How much memory is free for the KV cache."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["free"]

_CGROUPS = Path("/sys/fs/cgroup")


def free(device: Any) -> int:
    """Bytes that can be taken on a torch.device now; on the CPU no more than the unit's MemoryMax leaves."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return min([int(psutil.virtual_memory().available), *_left_in_cgroups()])


def _left_in_cgroups() -> list[int]:
    """What the limits of our cgroup and of those around it leave; empty without any."""
    left = []
    with suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2].lstrip("/")
        for group in [_CGROUPS / own, *(_CGROUPS / own).parents]:
            if group == _CGROUPS.parent:
                break
            with suppress(OSError, ValueError):  # "max" is no number: no limit
                left.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return left
