"""Weights from safetensors files into a model, at the speed of memory: each byte is moved once.

The model is built without memory of its own and takes the tensors as they come from the files. On the CPU they stay
views of the files, shared by all workers of a host and by the page cache; elsewhere each goes straight to the device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from service.model.release import ReleaseError

__all__ = ["OtherNames", "Progress", "assemble", "dtype", "read"]

Progress = Callable[[str, float], None]

AT_A_TIME = 4  # shards: one reader does not fill a fast disk or a PCIe link
CHUNK = 16 << 20  # bytes between two reports of progress: a hundredth of a second from a fast disk


class OtherNames(Exception):  # says more than an Error at its end would
    """The files name or shape their tensors otherwise than the model does."""


def dtype(name: str, config: Any) -> Any:
    """Return the torch.dtype that `name` means; None, for `auto` without a word in the config, keeps the files' own."""
    import torch

    if name != "auto":
        return getattr(torch, name)
    found = config.dtype or config.text_config.dtype
    return getattr(torch, found) if isinstance(found, str) else found


def read(shards: Sequence[Path], device: Any, dtype: Any, progress: Progress) -> dict[str, Any]:
    """Read every tensor of every shard to `device`; raises ReleaseError naming the file at fault."""
    state: dict[str, Any] = {}
    meter = _Meter(sum(shard.stat().st_size for shard in shards) or 1, progress)
    with ThreadPoolExecutor(AT_A_TIME, "load") as threads:
        for tensors in threads.map(lambda shard: _read_shard(shard, device, dtype, meter), shards):
            state.update(tensors)
    return state


def assemble(config: Any, state: dict[str, Any]) -> Any:
    """Make the model around the tensors, in evaluation mode, copying none; raises OtherNames."""
    import torch
    from transformers import Glm4vForConditionalGeneration

    with torch.device("meta"):
        model = Glm4vForConditionalGeneration(config)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise OtherNames from error
    device = next(iter(state.values())).device
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):  # rotary frequencies are in no file
            _renew(module, device)
    return model.requires_grad_(False).eval()


def _renew(module: Any, device: Any) -> None:
    """Compute the buffers of a rotary embedding, which are functions of its configuration."""
    fresh = type(module)(module.config)
    for name, buffer in fresh.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device))


class _Meter:
    """Adds up what several threads have read."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._done, self._progress = total, 0, progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress("reading weights", min(1.0, self._done / self._total))


def _read_shard(shard: Path, device: Any, dtype: Any, meter: _Meter) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Any] = {}
    try:
        if device.type == "cpu":
            _read_through(shard, meter)
        with safe_open(shard, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                tensor = file.get_tensor(name)
                if device.type != "cpu":
                    meter.add(tensor.numel() * tensor.element_size())
                tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    except SafetensorError as error:
        raise ReleaseError(f"{shard} is damaged or cut short: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ReleaseError(f"{shard} cannot be read: {error.strerror or error}") from error
    return tensors


def _read_through(shard: Path, meter: _Meter) -> None:
    """Bring the file into memory, which is where the time goes: mapping it afterwards takes none."""
    buffer = bytearray(CHUNK)
    with shard.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            meter.add(count)
