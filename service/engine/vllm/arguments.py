"""vLLM's arguments for a release: those of its settings, and those that the server sets itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from service.contract import device_memory
from service.contract.device_memory import Copy, Device, Kind
from service.contract.devices import Gpu
from service.contract.model_shape import ModelShape
from service.engine import memory
from service.engine.memory import MemoryShare
from service.model import checkpoint_files
from service.model.release import Release, ReleaseError

__all__ = ["MAX_LOGPROBS", "arguments", "memory_of_copy"]

MAX_LOGPROBS = 20
"""As OpenAI defines `top_logprobs`."""


def arguments(release: Release, *, served_model: str, max_images: int, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments beside `model`; `sizes`: those of `memory_of_copy`."""
    settings = release.engine
    return {
        **settings.vllm,
        "dtype": settings.dtype,
        "max_num_seqs": settings.rows,
        "served_model_name": served_model,
        "limit_mm_per_prompt": {"image": max_images, "video": 0},
        "scheduling_policy": "priority",
        "structured_outputs_config": {"backend": "guidance"},
        "generation_config": "vllm",  # its defaults are filled in by this program
        "max_logprobs": MAX_LOGPROBS,
        "enable_log_requests": False,
        "disable_log_stats": False,
        **sizes,
    }


def memory_of_copy(release: Release, gpu: Gpu | None, share: MemoryShare) -> tuple[dict[str, Any], int]:
    """Return vLLM's arguments for the memory that this copy may take, and the bytes that it takes of its GPU.

    They come from the function by which the native engine sizes its cache and preflight decides what fits. Raises
    ReleaseError if the copy does not fit.
    """
    total, free = min(map(_gpu_memory, gpu.all), key=lambda memory: memory[1]) if gpu else _host_memory()
    kind: Kind = "cuda" if gpu else "cpu"
    try:
        copy = _copy(release, kind)
    except (OSError, ValueError, KeyError) as error:
        raise ReleaseError(f"the memory of {release.model} cannot be computed: {error}") from error
    device = Device(kind, total, free, share.slots)
    tokens = device_memory.cache_tokens(copy, device, share.policy)
    if tokens < copy.least_tokens:
        raise ReleaseError(
            f"the device has room for a KV cache of {tokens} tokens beside the weights; at least {copy.least_tokens} "
            "are needed: see [memory] in glm.toml, or set kv_tokens"
        )
    if gpu is None:  # where vLLM has no sleep mode, and would not start with it
        return {"kv_cache_memory_bytes": tokens * copy.kv_token, "enable_sleep_mode": False}, 0
    if copy.kv_tokens:
        return {"kv_cache_memory_bytes": tokens * copy.kv_token}, copy.with_cache(tokens)
    room = device_memory.room(copy, device, share.policy)
    return {"gpu_memory_utilization": int(room / total * 1000) / 1000}, room


def _copy(release: Release, kind: Kind) -> Copy:
    config = json.loads((release.model / "config.json").read_bytes())
    text = config.get("text_config", config)
    shape = ModelShape.of(text)
    weights = sum(path.stat().st_size for path in checkpoint_files.shards(release.model))
    context = release.engine.vllm.get("max_model_len")
    copy = Copy.of(shape, release.engine, kind, weights=weights, itemsize=_itemsize(release, config))
    if isinstance(context, int):
        copy = replace(copy, context=min(context, copy.context))
    return copy.divided(release.engine.gpus) if kind == "cuda" else copy


def _itemsize(release: Release, config: Mapping[str, Any]) -> int:
    """Return the bytes of a number in the KV cache."""
    if str(release.engine.vllm.get("kv_cache_dtype", "auto")).startswith("fp8"):
        return 1
    name: str = release.engine.dtype
    if name == "auto":
        name = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or ""
    return 4 if name == "float32" else 2


def _gpu_memory(gpu: Gpu) -> tuple[int, int]:
    """Return the bytes of a GPU and those that are free, without a CUDA context in this process."""
    import pynvml

    pynvml.nvmlInit()
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
        return int(memory.total), int(memory.free)
    except pynvml.NVMLError as error:
        raise ReleaseError(f"the memory of {gpu.uuid} cannot be read: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def _host_memory() -> tuple[int, int]:
    return memory.memory_of(torch.device("cpu"))
