"""The engine settings of a release: the object `engine` of `release.json`, and `engine.json` beside a checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from service.contract import vllm_settings
from service.contract.fields import from_document

__all__ = ["EngineSettings", "parse", "parse_device"]

Kind = Literal["auto", "cpu", "cuda"]

_DEVICE = re.compile(r"(auto)|(cpu|cuda)(?::([0-9]{1,4}))?")
_ANY = float("inf")
_RANGES: dict[str, tuple[int, float]] = {
    "max_new_tokens": (1, _ANY),
    "rows": (1, 1024),
    "kv_tokens": (0, _ANY),
    "prefill_chunk": (16, _ANY),
    "max_token_gap_ms": (0, 60_000),
    "image_cache_mib": (0, _ANY),
}


@dataclass(frozen=True)
class EngineSettings:
    """Settings of the engine for one release; the defaults suit GLM-4.6V-Flash."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N` (the Nth GPU of the slot, from 0, alone), or `auto`: the GPUs if the host has any."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_new_tokens: int = 1024
    """For a request that sets no limit."""
    rows: int = 64
    """Requests that run at a time."""
    kv_tokens: int = 0
    """Size of the KV cache that they share, in tokens; 0: what the device's memory allows."""
    prefill_chunk: int = 512
    """Prompt tokens computed in one step, in addition to one token of each running request."""
    max_token_gap_ms: int = 0
    """Longest step with prompt tokens while requests run, in milliseconds: a step has as many as fit, at most
    `prefill_chunk`. If steps without any take more than half of it, those with some may take twice as long as these.
    0: 50 on a GPU; on the CPU no bound, since smaller steps cost throughput there."""
    image_cache_mib: int = 256
    """Memory for cached image features."""
    engine: Literal["native", "vllm"] = "native"
    """Which engine runs the model: the one of this program, or vLLM, which the environment of the release must have."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """Arguments of vLLM by their names in AsyncEngineArgs, beside those that the server sets."""

    @property
    def gpus(self) -> int:
        """How many GPUs one worker has, among which the model is divided."""
        return int(self.vllm.get("tensor_parallel_size", 1)) * int(self.vllm.get("pipeline_parallel_size", 1))


def parse(document: object, where: str = "engine") -> EngineSettings:
    """Make settings of a JSON object; raises ValueError that names the field at fault. `where` names the object."""
    settings = from_document(EngineSettings, document, where)
    known = {each.name for each in fields(EngineSettings)}
    if isinstance(document, dict) and (unknown := sorted(document.keys() - known)):
        raise ValueError(f"{where}.{unknown[0]} is not an engine setting")
    for name, (least, most) in _RANGES.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            raise ValueError(
                f"{where}.{name} is {value}, not {f'{least} to {most}' if most < 1e9 else f'at least {least}'}"
            )
    try:
        parse_device(settings.device)
    except ValueError as error:
        raise ValueError(f"{where}.device is {settings.device!r}, {error}") from error
    if settings.vllm and settings.engine != "vllm":
        raise ValueError(f'{where}.vllm has arguments, but {where}.engine is not "vllm"')
    vllm_settings.check(settings.vllm, f"{where}.vllm")
    return settings


def parse_device(name: str) -> tuple[Kind, int | None]:
    """Return the kind of a device, and its index if the name has one; raises ValueError for any other name."""
    found = _DEVICE.fullmatch(name)
    if not found:
        raise ValueError("not auto, cpu, cuda or cuda:N")
    kind: Kind = "auto" if found[1] else "cpu" if found[2] == "cpu" else "cuda"
    return kind, int(found[3]) if found[3] else None
