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
from deploy.host import Host
from deploy.policy import Policy
from deploy.releases.checkpoint import read_tensors
from deploy.releases.store import Release
from deploy.rollout.plan import Context, Plan
from service.contract import engine_settings
from service.contract.devices import Gpu, gpus_of_workers
from service.contract.engine_settings import EngineSettings, parse_device
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
    device of its own. Raises Refused if the engine settings are invalid.
    """
    engine, copies = _settings(release), workers if device == "cpu" else 1
    size = _BYTES.get(engine.dtype)
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
    tokens = engine.kv_tokens or min(_MIN_KV_TOKENS, text.max_position_embeddings)
    cache = 2 * text.num_hidden_layers * heads * head * size * tokens
    # the peak of one step: three buffers of the MLP's width, about eight of the hidden size, and two of the logits
    buffers = (engine.rows + engine.prefill_chunk) * (3 * text.intermediate_size + 8 * text.hidden_size) * size
    logits = 2 * engine.rows * text.vocab_size * 4
    workspace = _PROCESS[device] + buffers + logits + (engine.image_cache_mib << 20)
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
    """Return what the release needs; raises Refused, with the figures, if it does not fit or its device is missing."""
    release = context.releases.get(plan.version)
    gpus = _gpus_of(release, context.host, _slot(context, plan))
    device = "cuda" if gpus else "cpu"
    needed = need(release, workers=_workers(context.host) or 1, device=device)
    if plan.strategy == "weights":
        needed = Need(needed.weights, 0, 0)  # the new weights are read beside those in use; the rest stays
        if gpus:  # they are staged where there is room, else copied from the files
            return needed
    live = context.slots.live
    generation = current(context.host.runtime, live) if live else None
    held = _held([worker.pid for worker in generation.alive_workers], gpus) if generation else 0
    limit = Policy.of(context.host).memory.limit
    free = _free(gpus)
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


def _workers(host: Host) -> int:
    """Return GLM_WORKERS; 0 if it is not set."""
    setting = host.setting("WORKERS") or "0"
    return int(setting) if setting.isdecimal() else 0


def _slot(context: Context, plan: Plan) -> str:
    """Return the slot whose workers will hold the release."""
    return context.slots.idle if plan.strategy != "weights" else context.slots.live or context.slots.idle


def _unit_limit(context: Context, plan: Plan) -> float:
    """Return the bytes that the candidate's unit may use; infinity without a limit."""
    limit = context.systemd.memory_max(context.host.unit(_slot(context, plan)))
    return float("inf") if limit is None else limit


def _settings(release: Release) -> EngineSettings:
    try:
        return engine_settings.parse(release.manifest.engine)
    except ValueError as error:
        raise Refused(
            f"{release.version} cannot be served: {error}",
            hint="`glmctl release add --engine FILE` adds another release",
        ) from error


def _gpus_of(release: Release, host: Host, slot: str) -> list[_Gpu]:
    """Return the GPUs that the workers of `slot` would use, none for the CPU; raises Refused if the host lacks them."""
    device = _settings(release).device
    if parse_device(device)[0] == "cpu":
        return []
    try:
        gpus = Policy.of(host).devices.of(slot, _gpus(), host.variable("CUDA_VISIBLE_DEVICES"))
        return gpus_of_workers(device, gpus, _workers(host), slot)
    except ValueError as error:
        raise Refused(
            f"{release.version} cannot be served: {error}",
            hint=f"`nvidia-smi -L` lists the GPUs, and [devices] in {host.policy} names those of a slot; a release "
            "whose engine.json has the device auto also runs on a CPU",
        ) from error


def _free(gpus: list[_Gpu]) -> int:
    """Return the free bytes of the fullest of `gpus`; without any, those of the host."""
    return min((gpu.free for gpu in gpus), default=int(psutil.virtual_memory().available))


def _held(pids: list[int], gpus: list[_Gpu]) -> int:
    """Return the bytes that these processes free when they end; on GPUs the most on one device."""
    if gpus:
        return max(sum(gpu.used_by.get(pid, 0) for pid in pids) for gpu in gpus)
    return sum(_proportional(pid) for pid in pids)


def _proportional(pid: int) -> int:
    """Return the proportional set size: workers share the pages of the weights."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0


@dataclass(frozen=True)
class _Gpu(Gpu):
    free: int
    used_by: dict[int, int]
    """Bytes by pid."""


def _gpus() -> list[_Gpu]:
    """Return the GPUs of this host; raises Refused if their driver does not answer."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return list(_read_gpus(pynvml))
    except pynvml.NVMLError as error:
        raise Refused(
            f"the GPUs of this host cannot be examined: {error}", hint="`nvidia-smi` should list them"
        ) from error
    finally:
        pynvml.nvmlShutdown()


def _read_gpus(nvml: Any) -> Iterator[_Gpu]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        yield _Gpu(
            index=index,
            uuid=str(nvml.nvmlDeviceGetUUID(handle)),
            free=int(nvml.nvmlDeviceGetMemoryInfo(handle).free),
            used_by={one.pid: int(one.usedGpuMemory or 0) for one in processes},
        )


def _size(size: float) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / (1 << 20):.0f} MiB"
