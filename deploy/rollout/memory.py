"""The memory that a release needs, and whether its device has it, beside the live slot or in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, PositiveInt

from deploy.errors import Refused
from deploy.policy import Policy
from deploy.releases.checkpoint import read_tensors
from deploy.releases.store import Release
from deploy.rollout.plan import Context, Plan
from service.contract.generations import current

__all__ = ["Need", "need", "require"]

_PROCESS = {"cpu": 300 << 20, "cuda": 700 << 20}
"""Bytes of a worker without its model: interpreter and torch (proportional set size, measured); the CUDA context."""
_MIN_KV_TOKENS = 8192  # without kv_tokens the engine takes all free memory; with less than this it is of no use
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_GIB = 1 << 30


@dataclass(frozen=True)
class Need:
    """The bytes that a release needs."""

    weights: int
    cache: int
    workspace: int

    @property
    def total(self) -> int:
        """The sum, in bytes."""
        return self.weights + self.cache + self.workspace

    def __str__(self) -> str:
        parts = f"weights {_size(self.weights)}, KV cache {_size(self.cache)}, workspace {_size(self.workspace)}"
        return f"{_size(self.total)} ({parts})"


def need(release: Release, *, workers: int, device: str) -> Need:
    """Return the bytes of `release` on a `device` (cpu or cuda): weights in the engine's dtype, KV cache, workspace.

    On the CPU this is for all workers, which map one copy of the weights. On GPUs it is for one worker: each has a
    device of its own.
    """
    engine, copies = release.manifest.engine, workers if device == "cpu" else 1
    size = _BYTES.get(str(engine.get("dtype", "auto")))
    weights = 0
    for shard in sorted((release.path / "model").glob("*.safetensors")):
        for tensor in read_tensors(shard, shard.name).values():
            weights += tensor.elements * size if size and tensor.dtype in _FLOATS else tensor.size
    try:
        text, dtype = _read_config(release.path / "model/config.json")
    except (OSError, ValueError):  # the candidate's load reports what is wrong with it
        return Need(weights, 0, _PROCESS[device] * copies)
    size = size or _BYTES.get(dtype, 2)
    heads = text.num_key_value_heads or text.num_attention_heads
    head = text.head_dim or text.hidden_size // text.num_attention_heads
    tokens = int(engine.get("kv_tokens") or min(_MIN_KV_TOKENS, text.max_position_embeddings))
    cache = 2 * text.num_hidden_layers * heads * head * size * tokens
    rows, chunk = int(engine.get("rows", 64)), int(engine.get("prefill_chunk", 512))
    # the peak of one step: three buffers of the MLP's width, about eight of the hidden size, and two of the logits
    buffers = (rows + chunk) * (3 * text.intermediate_size + 8 * text.hidden_size) * size
    logits = 2 * rows * text.vocab_size * 4
    workspace = _PROCESS[device] + buffers + logits + (int(engine.get("image_cache_mib", 256)) << 20)
    return Need(weights, cache * copies, workspace * copies)


class _Text(BaseModel):
    """The sizes of the language model in config.json."""

    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = _MIN_KV_TOKENS


def _read_config(path: Path) -> tuple[_Text, str]:
    """Return the sizes and the dtype of a checkpoint; raises OSError, or ValueError for an invalid config."""
    config = json.loads(path.read_text())
    if not isinstance(config, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  (bad data, not a bad call)
    text = config.get("text_config", config)
    return _Text.model_validate(text), str(config.get("dtype") or text.get("dtype"))


def require(context: Context, plan: Plan) -> Need:
    """Return what the release needs; raises Refused, with the figures, if it does not fit."""
    release = context.releases.get(plan.version)
    workers = _workers(context)
    device = _device(release)
    needed = need(release, workers=workers, device=device)
    if plan.strategy == "weights":
        needed = Need(needed.weights, 0, 0)  # the new weights are read beside those in use; the rest stays
    live = context.slots.live
    generation = current(context.host.runtime, live) if live else None
    held = _held([worker.pid for worker in generation.alive_workers], device) if generation else 0
    limit = Policy.of(context.host).memory.limit
    free = _free(device, workers)
    if limit is not None:
        free = min(free, max(0, limit - held))
    available = free + held if plan.strategy == "swap" else free
    unit_limit = _unit_limit(context, plan)
    if needed.total > unit_limit:
        unit = context.host.unit(context.slots.idle)
        raise Refused(
            f"{plan.version} needs {needed}; MemoryMax= of {unit} allows {_size(unit_limit)}",
            hint=f"systemctl {'--user ' if context.host.user else ''}edit glm@.service",
        )
    if needed.total <= available:
        return needed
    beside = f" beside {live}, which holds {_size(held)}" if held else ""
    if plan.strategy != "swap" and held and needed.total <= free + held:
        hint = f"--strategy swap unloads {live} first; clients wait meanwhile"
    else:
        hint = "smaller kv_tokens, rows or dtype in the release's engine.json need less"
    raise Refused(f"{plan.version} needs {needed}; {_size(available)} are free on the {device}{beside}", hint=hint)


def _workers(context: Context) -> int:
    setting = context.host.setting("WORKERS") or "1"
    return max(1, int(setting)) if setting.isdigit() else 1


def _unit_limit(context: Context, plan: Plan) -> float:
    """Return the bytes that the candidate's unit may use; infinity without a limit."""
    slot = context.slots.idle if plan.strategy != "weights" else context.slots.live or context.slots.idle
    limit = context.systemd.memory_max(context.host.unit(slot))
    return float("inf") if limit is None else limit


def _device(release: Release) -> str:
    device = str(release.manifest.engine.get("device", "auto"))
    if device == "auto":
        return "cuda" if _gpus() else "cpu"
    return device.split(":")[0]


def _free(device: str, workers: int) -> int:
    """Return the free bytes; of the fullest GPU that a worker would use."""
    if device == "cuda":
        return min(gpu.free for gpu in _gpus()[:workers])
    return int(psutil.virtual_memory().available)


def _held(pids: list[int], device: str) -> int:
    """Return the bytes that these processes free when they end; on GPUs the most on one device."""
    if device == "cuda":
        return max((sum(gpu.used_by.get(pid, 0) for pid in pids) for gpu in _gpus()), default=0)
    return sum(_proportional(pid) for pid in pids)


def _proportional(pid: int) -> int:
    """Return the proportional set size: workers share the pages of the weights."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0


@dataclass(frozen=True)
class _Gpu:
    free: int
    used_by: dict[int, int]
    """Bytes by pid."""


def _gpus() -> list[_Gpu]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return list(_read_gpus(pynvml))
    finally:
        pynvml.nvmlShutdown()


def _read_gpus(nvml: Any) -> Iterator[_Gpu]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        yield _Gpu(
            int(nvml.nvmlDeviceGetMemoryInfo(handle).free), {one.pid: int(one.usedGpuMemory or 0) for one in processes}
        )


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / (1 << 20):.0f} MiB"
