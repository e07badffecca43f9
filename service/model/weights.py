"""Weights from safetensors files into a model, copying each byte at most once.

The model is built without memory of its own and takes over the tensors read from the files. On the CPU they remain
views of the files, shared with all workers of the host through the page cache; to a device they are copied through a
few pinned buffers (`device_reader.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from service.model import device_reader
from service.model.checkpoint_files import errors_of
from service.model.release import Progress

if TYPE_CHECKING:
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

__all__ = ["StateMismatch", "assemble", "read", "resolve_dtype"]

CONCURRENT_SHARDS = 4  # one reader does not saturate a fast disk or a PCIe link
CHUNK = 16 << 20  # bytes between two progress reports: a hundredth of a second from a fast disk


class StateMismatch(Exception):  # a condition that `load` handles, not necessarily an error
    """Names or shapes of the tensors differ from the model's."""


def resolve_dtype(name: str, config: Glm4vConfig) -> torch.dtype | None:
    """Return the dtype to load with; None, for `auto` without a dtype in the config, keeps that of the files."""
    if name != "auto":
        return _dtype(name)
    configured = config.dtype or config.text_config.dtype
    return _dtype(configured) if isinstance(configured, str) else configured


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def read(
    shards: Sequence[Path], device: torch.device, dtype: torch.dtype | None, progress: Progress
) -> dict[str, Tensor]:
    """Read all tensors of all shards to `device`; raises ReleaseError naming the file at fault."""
    meter = _Meter(sum(shard.stat().st_size for shard in shards) or 1, progress)
    if device.type != "cpu":
        return device_reader.read(shards, device, dtype, meter.add)
    state: dict[str, Tensor] = {}
    with ThreadPoolExecutor(CONCURRENT_SHARDS, "load") as threads:
        for tensors in threads.map(lambda shard: _map_shard(shard, dtype, meter), shards):
            state.update(tensors)
    return state


def assemble(config: Glm4vConfig, state: dict[str, Tensor]) -> Glm4vForConditionalGeneration:
    """Build the model around the tensors without copying them, in evaluation mode; raises StateMismatch."""
    from transformers import Glm4vForConditionalGeneration
    from transformers.initialization import no_init_weights

    with _EmptyOnMeta(), no_init_weights():
        model = Glm4vForConditionalGeneration(config)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise StateMismatch from error
    device = next(iter(state.values())).device
    return model.requires_grad_(False).eval().to(device)  # what remains to be moved are the rotary frequencies


class _EmptyOnMeta(TorchFunctionMode):
    """Gives uninitialized tensors no memory: those are the parameters, which the state replaces.

    Everything else is computed where it belongs. torch.device("meta") would include the rotary frequencies, which are
    in no file, and import torch._dynamo to compute them.
    """

    def __torch_function__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)


class _Meter:
    """Progress over the bytes that several threads read."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._done, self._progress = total, 0, progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress("reading weights", min(1.0, self._done / self._total))


def _map_shard(shard: Path, dtype: torch.dtype | None, meter: _Meter) -> dict[str, Tensor]:
    from safetensors import safe_open

    tensors: dict[str, Tensor] = {}
    with errors_of(shard):
        _fill_page_cache(shard, meter)
        with safe_open(shard, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                tensor: Tensor = file.get_tensor(name)
                tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    return tensors


def _fill_page_cache(shard: Path, meter: _Meter) -> None:
    """Read the file once, with progress: this takes the time that mapping it afterwards then does not."""
    buffer = bytearray(CHUNK)
    with shard.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            meter.add(count)
