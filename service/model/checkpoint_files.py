"""The files of a checkpoint in Hugging Face's format, checked as far as that goes without torch and transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.contract import quantization
from service.model.release import ReleaseError

__all__ = ["ARCHITECTURE", "check", "errors_of", "first_line", "shards"]

ARCHITECTURE = "Glm4vForConditionalGeneration"
REQUIRED = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def check(path: Path, *, quantised: bool = False) -> None:
    """Check that the files of the checkpoint `path` are there and name the right architecture; raises ReleaseError.

    `quantised`: the engine runs quantised weights too.
    """
    if not path.is_dir():
        raise ReleaseError(f"{path} is not a directory: the checkpoint of a release is expected there")
    for name in REQUIRED:
        _read_json(path / name)
    architectures = _read_json(path / "config.json").get("architectures") or ["no architecture"]
    if ARCHITECTURE not in architectures:
        raise ReleaseError(
            f"{path}/config.json names {', '.join(map(str, architectures))}; only {ARCHITECTURE} is supported"
        )
    if not quantised and (method := quantization.method_of(_read_json(path / "config.json"))):
        raise ReleaseError(f"the weights in {path} are quantised ({method}), which the engine does not run")
    templates = [path / "chat_template.jinja", path / "chat_template.json"]
    if not any(file.is_file() for file in templates) and "chat_template" not in _read_json(
        path / "tokenizer_config.json"
    ):
        raise ReleaseError(f"{path}/chat_template.jinja is missing")


def shards(path: Path) -> list[Path]:
    """Return the files that hold the weights; raises ReleaseError for one that is missing."""
    if (path / INDEX).exists():
        files = _read_json(path / INDEX).get("weight_map")
        if not isinstance(files, Mapping) or not all(
            isinstance(file, str) and Path(file).name == file for file in files.values()
        ):
            raise ReleaseError(f"{path / INDEX} has no weight_map from tensors to file names")
        found = [path / name for name in sorted(set(files.values()))]
    else:
        found = [path / SINGLE]
    for shard in found:
        if not shard.is_file():
            raise ReleaseError(f"{shard} is missing")
    return found


@contextmanager
def errors_of(shard: Path) -> Iterator[None]:
    """Raise ReleaseError, which names the file, for what goes wrong while it is read."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ReleaseError(f"{shard} is damaged or truncated: {first_line(error)}") from error
    except OSError as error:
        raise ReleaseError(f"{shard} cannot be read: {error.strerror or error}") from error


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message, at most 300 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ReleaseError(f"{file} is missing") from None
    except OSError as error:
        raise ReleaseError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{file} is not JSON: {first_line(error)}") from error
    if not isinstance(document, dict):
        raise ReleaseError(f"{file} is not a JSON object")
    return document
