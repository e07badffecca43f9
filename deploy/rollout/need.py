"""The memory that a release needs, computed from its files."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.display import size
from deploy.errors import Refused
from deploy.releases.checkpoint import read_tensors
from deploy.releases.store import Release
from service.contract import engine_settings
from service.contract.device_memory import PROCESS, Copy, Kind
from service.contract.engine_settings import EngineSettings
from service.contract.model_shape import ModelShape

__all__ = ["copy_of", "settings_of", "text"]

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_WEIGHTS = ".safetensors"
_FLOATS = {"F64", "F32", "F16", "BF16"}


def copy_of(release: Release, *, workers: int, kind: Kind) -> Copy:
    """Return what `release` takes: weights in the engine's dtype, process, workspace, and a token of the KV cache.

    On the CPU this is for all workers, which map one copy of the weights. On GPUs it is for one worker: each has a
    device of its own. Raises Refused if the engine settings are invalid.
    """
    settings, processes = settings_of(release), workers if kind == "cpu" else 1
    itemsize = _BYTES.get(settings.dtype)
    weights = _converted(release, itemsize) if itemsize else _stored(release)
    try:
        shape, dtype = _read_config(release.path / "model/config.json")
    except (OSError, ValueError):  # the candidate's load reports what is wrong with it
        return Copy(weights, PROCESS[kind] * processes, workspace=0, kv_token=1, context=1)
    itemsize = itemsize or _BYTES.get(dtype, 2)
    copy = Copy.of(shape, settings, kind, weights=weights, itemsize=itemsize, workers=processes)
    return copy.divided(settings.gpus) if kind == "cuda" else copy


def settings_of(release: Release) -> EngineSettings:
    """Return the engine settings; raises Refused if they are invalid."""
    try:
        return engine_settings.parse(release.manifest.engine)
    except ValueError as error:
        raise Refused(
            f"{release.version} cannot be served: {error}",
            hint="`glmctl release add --engine FILE` adds another release",
        ) from error


def text(copy: Copy) -> str:
    """Return the least that a copy takes, and its parts."""
    cache = copy.least_tokens * copy.kv_token
    parts = f"weights {size(copy.weights)}, KV cache {size(cache)}, workspace {size(copy.process + copy.workspace)}"
    return f"{size(copy.least)} ({parts})"


def _stored(release: Release) -> int:
    """Return the bytes of the weights as they are stored, with the headers of their files, which are small."""
    return sum(file.size for file in release.manifest.files if file.path.endswith(_WEIGHTS))


def _converted(release: Release, itemsize: int) -> int:
    """Return the bytes of the weights once their floating-point numbers have `itemsize` bytes each."""
    tensors = (
        tensor
        for file in release.manifest.files
        if file.path.endswith(_WEIGHTS)
        for tensor in read_tensors(release.path / file.path, file.path).values()
    )
    return sum(each.elements * itemsize if each.dtype in _FLOATS else each.size for each in tensors)


def _read_config(path: Path) -> tuple[ModelShape, str]:
    """Return the sizes and the dtype of a checkpoint; raises OSError, or ValueError for an invalid config."""
    config = json.loads(path.read_text())
    shape = ModelShape.of(config)
    return shape, str(config.get("dtype") or config.get("text_config", {}).get("dtype"))
