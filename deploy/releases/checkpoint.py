"""A checkpoint directory as Hugging Face writes it, looked at before it is trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

from deploy.errors import Refused

_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".mar", ".th"})
_LONGEST_HEAD = 100 << 20  # bytes; the safetensors format allows no more


def checkpoint_files(source: Path) -> Iterator[tuple[Path, str]]:
    """The files to import, as (path, name below the checkpoint); raises Refused for what is no safe checkpoint."""
    if not source.is_dir():
        raise Refused(f"{source} is no directory", hint="give the checkpoint directory as Hugging Face writes it")
    found = []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if any(part.startswith(".") for part in name.parts) or str(name) in {"checks.json", "engine.json"}:
            continue
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file():
            raise Refused(f"{path} is neither a file nor a directory")
        if path.suffix.lower() in _PICKLES:
            raise Refused(
                f"{name} may hold a pickle, which runs code when it is loaded",
                hint="only safetensors are accepted: convert it with save_pretrained(..., safe_serialization=True)",
            )
        found.append((path, str(name)))
    names = {word for _, word in found}
    if "config.json" not in names:
        raise Refused(f"{source} is no checkpoint: config.json is missing")
    shards = [(path, word) for path, word in found if word.endswith(".safetensors")]
    if not shards:
        raise Refused(f"{source} is no checkpoint: it has no .safetensors file")
    for path, word in shards:
        _check_tensors(path, word)
    _check_index(source, names)
    yield from found


class _Tensor(BaseModel):
    model_config = ConfigDict(strict=True)

    dtype: str = ""
    shape: tuple[NonNegativeInt, ...] = ()
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


class _Index(BaseModel):
    weight_map: dict[str, str]


_HEAD = TypeAdapter(dict[str, _Tensor | dict[str, str]])


def _check_tensors(path: Path, name: str) -> None:
    """See that the file is as long as its own header says (8 bytes of length, JSON, then the tensors' bytes)."""
    size = path.stat().st_size
    length, found = _read_head(path, name)
    whole = 8 + length + max((tensor.data_offsets[1] for tensor in found), default=0)
    if whole != size:
        raise Refused(f"{name} is truncated: {size} bytes instead of {whole}", hint="download it again")


def _read_head(path: Path, name: str) -> tuple[int, list[_Tensor]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = file.read(min(length, _LONGEST_HEAD))
    try:
        return length, [entry for entry in _HEAD.validate_json(head).values() if isinstance(entry, _Tensor)]
    except ValidationError as error:
        raise Refused(f"{name} is no safetensors file, or its head is damaged") from error


def tensors(path: Path) -> Iterator[tuple[str, int, int]]:
    """The tensors of a safetensors file by its header: dtype as the format names it, elements, bytes."""
    for tensor in _read_head(path, path.name)[1]:
        yield tensor.dtype, math.prod(tensor.shape), tensor.data_offsets[1] - tensor.data_offsets[0]


def _check_index(source: Path, names: set[str]) -> None:
    index = "model.safetensors.index.json"
    if index not in names:
        return
    try:
        shards = set(_Index.model_validate_json((source / index).read_bytes()).weight_map.values())
    except ValidationError as error:
        raise Refused(f"{index} is damaged") from error
    if missing := sorted(shards - names):
        raise Refused(f"{missing[0]} is missing: {index} names it", hint="download the checkpoint again")


class Check(BaseModel):
    """A question that a release must answer rightly; the server's own description says more."""

    model_config = ConfigDict(extra="forbid")

    question: str
    answer: str | None = None
    image: str | None = None
    name: str | None = None
    max_tokens: int = Field(default=32, ge=1)


def read_checks(path: Path, *, required: bool) -> tuple[dict[str, Any], ...]:
    """The checks in `path`, none where it is absent and not required; raises Refused for what cannot be asked."""
    found = read_json(path, list, required=required) or []
    try:
        return tuple(Check.model_validate(check).model_dump(exclude_unset=True) for check in found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "a check"
        raise Refused(
            f"{path.name}: {where}: {first['msg']}",
            hint='a list like [{"question": "Which colour?", "image": "red.png", "answer": "red"}]',
        ) from error


def pictures(checks: Iterable[dict[str, Any]], beside: Path) -> Iterator[tuple[Path, str]]:
    """The picture files that checks name, relative to the file they stand in."""
    seen = set()
    for check in checks:
        image = check.get("image")
        if image is None or image.startswith("data:") or image in seen:
            continue
        seen.add(image)
        path = beside / image
        if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts or not path.is_file():
            raise Refused(f"a check names the picture {image}, which is not beside it")
        yield path, image


def read_json(path: Path, kind: type[Any], *, required: bool) -> Any:
    """The JSON list or object in `path`, None where it is absent and not required; raises Refused."""
    if not path.exists() and not required:
        return None
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(document, kind):
        raise Refused(f"{path} must hold a JSON {'list' if kind is list else 'object'}")
    return document
