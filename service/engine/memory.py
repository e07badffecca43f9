"""The memory of the device that a model runs on, and the size of the KV cache that it leaves room for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from service.contract import device_memory
from service.contract.device_memory import Copy, Device, Kind
from service.contract.engine_settings import EngineSettings
from service.contract.memory_policy import MemoryPolicy
from service.contract.model_shape import ModelShape

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

__all__ = ["MemoryShare", "cache_tokens", "copy_of", "memory_of"]

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryShare:
    """What limits the memory of an engine beside the device itself."""

    policy: MemoryPolicy = field(default_factory=MemoryPolicy)
    slots: int = 0
    """Bytes that the other generations of this host hold on the device."""


def copy_of(model: Glm4vForConditionalGeneration, settings: EngineSettings) -> Copy:
    """Return what `model` takes of its device."""
    shape = ModelShape.of(model.config.text_config.to_dict())
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}  # tied ones once
    kind: Kind = "cuda" if model.device.type == "cuda" else "cpu"
    return Copy.of(shape, settings, kind, weights=sum(tensors.values()), itemsize=model.dtype.itemsize)


def cache_tokens(copy: Copy, device: torch.device, share: MemoryShare) -> int:
    """Return the size of the KV cache, in tokens, of a copy whose weights are on `device` already."""
    total, free = memory_of(device)
    kind: Kind = "cuda" if device.type == "cuda" else "cpu"
    before = Device(kind, total, free + copy.weights + copy.process, share.slots)
    return device_memory.cache_tokens(copy, before, share.policy)


def memory_of(device: torch.device) -> tuple[int, int]:
    """Return the bytes of a device, and those that are free; on the CPU not more than the unit's MemoryMax= leaves."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total), int(free)
    memory = psutil.virtual_memory()
    return int(memory.total), min([int(memory.available), *_cgroup_headrooms()])


def _cgroup_headrooms() -> list[int]:
    """Return the bytes left under the memory limit of each enclosing cgroup that has one."""
    headrooms = []
    with suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2].lstrip("/")
        for group in [_CGROUPS / own, *(_CGROUPS / own).parents]:
            if group == _CGROUPS.parent:
                break
            with suppress(OSError, ValueError):  # ValueError: the limit is "max"
                headrooms.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return headrooms
