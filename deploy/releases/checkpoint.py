"""Validation of a Hugging Face checkpoint directory before it is imported."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from deploy.errors import Refused
from deploy.releases.environments import Environment
from service.contract import checks, engine_settings, quantization, vllm_settings

_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".mar", ".th"})
_INDEX = "model.safetensors.index.json"
_NOT_COPIED = frozenset({"checks.json", "engine.json"})  # their contents go into release.json


def checkpoint_files(source: Path, *, quantised: bool = False) -> Iterator[tuple[Path, str]]:
    """Yield the files to import as (path, name relative to `source`); hidden files are left out.

    `quantised`: the engine of the release runs quantised weights too.

    Raises Refused if `source` is not a complete checkpoint, or if a file may run code when it is loaded.
    """
    if not source.is_dir():
        raise Refused(f"{source} is not a directory", hint="give the checkpoint directory as Hugging Face writes it")
    found = []
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        name = str(relative)
        if any(part.startswith(".") for part in relative.parts) or name in _NOT_COPIED:
            continue
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file():
            raise Refused(f"{path} is neither a file nor a directory")
        if path.suffix.lower() in _PICKLES:
            raise Refused(
                f"{name} may hold a pickle, which can run code when it is loaded",
                hint="only safetensors are accepted: convert it with save_pretrained(..., safe_serialization=True)",
            )
        found.append((path, name))
    names = {name for _, name in found}
    if "config.json" not in names:
        raise Refused(f"{source} is not a checkpoint: config.json is missing")
    if not quantised:
        _require_plain(source / "config.json")
    shards = [(path, name) for path, name in found if name.endswith(".safetensors")]
    if not shards:
        raise Refused(f"{source} is not a checkpoint: it has no .safetensors file")
    for path, name in shards:
        read_tensors(path, name)
    if _INDEX in names:
        _require_shards(source / _INDEX, names)
    yield from found


def _require_plain(config: Path) -> None:
    """Refuse a quantised checkpoint. What else is wrong with the configuration is reported when it is loaded."""
    with suppress(OSError, ValueError, RecursionError):
        if method := quantization.method_of(json.loads(config.read_bytes())):
            raise Refused(
                f"the weights are quantised ({method}), which the engine does not run", hint=quantization.WAY_OUT
            )


@dataclass(frozen=True)
class Tensor:
    """The header entry of one tensor; `dtype` is the format's name for it, such as BF16."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def elements(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in the file. The first number in a dtype's name is its width in bits; BOOL, without one, has 8."""
        bits = re.search(r"\d+", self.dtype)
        return self.elements * (int(bits[0]) if bits else 8) // 8


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """Read the header of a safetensors file; returns its tensors by name.

    Raises Refused, with `name` for the file, if it cannot be read, its header is damaged, or its length is not that of
    the tensors in the header.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
            return {key: Tensor(each.get_dtype(), tuple(each.get_shape())) for key, each in slices.items()}
    except SafetensorError as error:
        if "incomplete" in str(error).lower():  # the library has one exception for all faults
            raise Refused(
                f"{name} is truncated: its header describes another length than the file has",
                hint="download it again",
            ) from error
        raise Refused(f"{name} is not a safetensors file, or its header is damaged: {error}") from error
    except OSError as error:
        raise Refused(f"{name} cannot be read: {error}") from error


class _Index(BaseModel):
    weight_map: dict[str, str]


def _require_shards(index: Path, names: set[str]) -> None:
    try:
        shards = set(_Index.model_validate_json(index.read_bytes()).weight_map.values())
    except ValidationError as error:
        raise Refused(f"{index.name} is damaged") from error
    if missing := sorted(shards - names):
        raise Refused(f"{missing[0]} is missing: {index.name} refers to it", hint="download the checkpoint again")


def read_checks(path: Path, *, required: bool) -> tuple[dict[str, Any], ...]:
    """Return the checks in `path`; none if it is absent and not required. Raises Refused if one is invalid."""
    found = read_json(path, list, required=required) or []
    try:
        checks.parse(found)
    except ValueError as error:
        raise Refused(
            f"{path.name}: {error}",
            hint='a list like [{"question": "Which colour?", "image": "red.png", "answer": "red"}]',
        ) from error
    return tuple(found)


def read_engine(path: Path, environment: Environment | None = None, *, required: bool) -> dict[str, Any]:
    """Return the engine settings in `path`; none if it is absent and not required. Raises Refused if one is invalid.

    The arguments of vLLM are compared with those of the vLLM in `environment`.
    """
    found: dict[str, Any] = read_json(path, dict, required=required) or {}
    try:
        settings = engine_settings.parse(found)
        names = environment.argument_names() if environment and settings.engine == "vllm" else None
        if names is not None:
            vllm_settings.check_names(settings.vllm, names)
    except ValueError as error:
        raise Refused(f"{path.name}: {error}", hint='an object like {"dtype": "bfloat16", "rows": 64}') from error
    if environment and settings.engine == "vllm" and names is None:
        raise Refused(
            f"{environment.path} has no vLLM, which {path.name} names as the engine",
            hint="`glmctl env make NAME --vllm VERSION` makes an environment with it",
        )
    return found


def check_images(documents: Iterable[dict[str, Any]], directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield the image files of checks as (path, name relative to `directory`), each once.

    Raises Refused for a name that is absent or leads out of `directory`.
    """
    seen = set()
    for check in documents:
        image = check.get("image")
        if image is None or image.startswith("data:") or image in seen:
            continue
        seen.add(image)
        path = directory / image
        if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts or not path.is_file():
            raise Refused(f"a check refers to the image {image}, which is not beside the checks file")
        yield path, image


def read_json(path: Path, kind: type[Any], *, required: bool) -> Any:
    """Return the JSON list or object in `path`; None if it is absent and not required. Raises Refused."""
    if not path.exists() and not required:
        return None
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(document, kind):
        raise Refused(f"{path} must hold a JSON {'list' if kind is list else 'object'}")
    return document
