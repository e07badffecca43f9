"""Does a release fit the memory of its device, beside the slot that is live or in its place?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, PositiveInt

from deploy.errors import Refused
from deploy.journal.accounts import current
from deploy.policy import Policy
from deploy.releases.checkpoint import read_tensors
from deploy.releases.store import Release
from deploy.rollout.plan import Context, Plan

__all__ = ["Need", "need", "require"]

_PROCESS = {"cpu": 300 << 20, "cuda": 700 << 20}
"""Bytes of a worker without its model: interpreter and torch (proportional set size, measured); the CUDA context."""
_LEAST_KV = 8192  # tokens of cache without which a release is of no use; the engine takes what it finds beyond
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_GIB = 1 << 30


@dataclass(frozen=True)
class Need:
    """Bytes that a release needs to be served."""

    weights: int
    cache: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.workspace

    def __str__(self) -> str:
        parts = f"weights {_size(self.weights)}, KV cache {_size(self.cache)}, workspace {_size(self.workspace)}"
        return f"{_size(self.total)} ({parts})"


def need(release: Release, *, workers: int, device: str) -> Need:
    """What `release` needs: weights by the safetensors headers in the engine's dtype, KV cache, workspace.

    On the CPU all workers share one copy of the weights, which they map; on GPUs this is the need of one worker, for
    each has a device of its own.
    """
    engine, each = release.manifest.engine, workers if device == "cpu" else 1
    size = _BYTES.get(str(engine.get("dtype", "auto")))
    weights = 0
    for shard in sorted((release.path / "model").glob("*.safetensors")):
        for tensor in read_tensors(shard, shard.name).values():
            weights += tensor.elements * size if size and tensor.dtype in _FLOATS else tensor.size
    try:
        text, dtype = _sizes(release.path / "model/config.json")
    except (OSError, ValueError):  # what is wrong with it, the candidate says better
        return Need(weights, 0, _PROCESS[device] * each)
    size = size or _BYTES.get(dtype, 2)
    heads = text.num_key_value_heads or text.num_attention_heads
    head = text.head_dim or text.hidden_size // text.num_attention_heads
    tokens = int(engine.get("kv_tokens") or min(_LEAST_KV, text.max_position_embeddings))
    cache = 2 * text.num_hidden_layers * heads * head * size * tokens
    rows, chunk = int(engine.get("rows", 64)), int(engine.get("prefill_chunk", 512))
    # what a step holds at its widest: the inner layer's three lines, a few of the hidden size, and two of the logits
    widest = (rows + chunk) * (3 * text.intermediate_size + 8 * text.hidden_size) * size
    logits = 2 * rows * text.vocab_size * 4
    workspace = _PROCESS[device] + widest + logits + (int(engine.get("image_cache_mib", 256)) << 20)
    return Need(weights, cache * each, workspace * each)


class _Text(BaseModel):
    """The sizes of a language model, as config.json names them."""

    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = _LEAST_KV


def _sizes(path: Path) -> tuple[_Text, str]:
    """The sizes and the dtype of a checkpoint; raises OSError, or ValueError for what is no such config."""
    config = json.loads(path.read_text())
    if not isinstance(config, dict):
        raise ValueError("no JSON object")  # noqa: TRY004  (of the file, not of an argument)
    text = config.get("text_config", config)
    return _Text.model_validate(text), str(config.get("dtype") or text.get("dtype"))


def require(context: Context, plan: Plan) -> Need:
    """Refuse a release that does not fit, with the figures and the way out; returns what it needs."""
    release = context.releases.get(plan.version)
    workers = _workers(context)
    device = _device(release)
    wanted = need(release, workers=workers, device=device)
    if plan.strategy == "weights":
        wanted = Need(wanted.weights, 0, 0)  # they are read beside those in use; the rest is there
    live = context.slots.live
    one = current(context.host, live) if live else None
    held = _held([worker.pid for worker in one.living], device) if one else 0
    budget = Policy.of(context.host).memory.limit
    free = _free(device, workers)
    if budget is not None:
        free = min(free, max(0, budget - held))
    room = free + held if plan.strategy == "swap" else free
    most = _most(context, plan)
    if wanted.total > most:
        unit = context.host.unit(context.slots.idle)
        raise Refused(
            f"{plan.version} needs {wanted}; MemoryMax= of {unit} allows {_size(most)}",
            hint=f"systemctl {'--user ' if context.host.user else ''}edit glm@.service",
        )
    if wanted.total <= room:
        return wanted
    beside = f" beside {live}, which holds {_size(held)}" if held else ""
    if plan.strategy != "swap" and held and wanted.total <= free + held:
        hint = f"--strategy swap loads it after {live} has left; clients wait meanwhile"
    else:
        hint = "kv_tokens, rows or dtype in the release's engine.json make it smaller"
    raise Refused(f"{plan.version} needs {wanted}; {_size(room)} are free on the {device}{beside}", hint=hint)


def _workers(context: Context) -> int:
    said = context.host.setting("WORKERS") or "1"
    return max(1, int(said)) if said.isdigit() else 1


def _most(context: Context, plan: Plan) -> float:
    """What the candidate's unit may take."""
    slot = context.slots.idle if plan.strategy != "weights" else context.slots.live or context.slots.idle
    said = context.systemd.memory_max(context.host.unit(slot))
    return float("inf") if said is None else said


def _device(release: Release) -> str:
    wanted = str(release.manifest.engine.get("device", "auto"))
    if wanted == "auto":
        return "cuda" if _gpus() else "cpu"
    return wanted.split(":")[0]


def _free(device: str, workers: int) -> int:
    if device == "cuda":
        return min(gpu.free for gpu in _gpus()[:workers])
    return int(psutil.virtual_memory().available)


def _held(pids: list[int], device: str) -> int:
    """What these processes give back when they leave; on GPUs what the fullest device gets back."""
    if device == "cuda":
        return max((sum(gpu.used_by.get(pid, 0) for pid in pids) for gpu in _gpus()), default=0)
    return sum(_proportional(pid) for pid in pids)


def _proportional(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0


@dataclass(frozen=True)
class _Gpu:
    free: int
    used_by: dict[int, int]


def _gpus() -> list[_Gpu]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return list(_each_gpu(pynvml))
    finally:
        pynvml.nvmlShutdown()


def _each_gpu(nvml: Any) -> Iterator[_Gpu]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        yield _Gpu(
            int(nvml.nvmlDeviceGetMemoryInfo(handle).free), {one.pid: int(one.usedGpuMemory or 0) for one in running}
        )


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / (1 << 20):.0f} MiB"
