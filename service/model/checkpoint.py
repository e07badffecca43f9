"""Loading of a checkpoint in Hugging Face's format; every defect raises ReleaseError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from service.model import weights
from service.model.release import EngineSettings, ReleaseError
from service.model.weights import Progress

if TYPE_CHECKING:
    from transformers import GenerationConfig, Glm4vConfig, Glm4vForConditionalGeneration

    from service.model.processor import Processor

__all__ = ["ARCHITECTURE", "Checkpoint", "Progress", "load", "read_weights"]

ARCHITECTURE = "Glm4vForConditionalGeneration"
REQUIRED = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A model on its device, in evaluation mode, with its processor and defaults."""

    model: Glm4vForConditionalGeneration
    processor: Processor
    generation_config: GenerationConfig
    end_tokens: frozenset[int]  # ids that end an output
    context_length: int  # maximum tokens of prompt and output together


def load(path: Path, settings: EngineSettings, progress: Progress) -> Checkpoint:
    """Load the checkpoint directory `path`; raises ReleaseError naming the file at fault.

    `progress` is called with the name of a step and the completed share of it, 0.0 to 1.0.
    """
    _check_files(path)  # before transformers is imported, which takes seconds
    progress("importing", 0.0)
    from transformers.utils import logging

    from service.model.processor import Processor

    progress("importing", 1.0)
    logging.disable_progress_bar()
    device = _device(settings.device)
    config = _config(path)
    try:
        processor = Processor.read(path)
    except Exception as error:
        raise ReleaseError(
            f"the tokenizer or the preprocessor in {path} cannot be read: {_first_line(error)}"
        ) from error
    generation_config, end_tokens = _generation_config(path, config)
    state = weights.read(_shards(path), device, weights.resolve_dtype(settings.dtype, config), progress)
    progress("building the model", 0.0)
    model = _build(path, config, state)
    progress("building the model", 1.0)
    return Checkpoint(model, processor, generation_config, end_tokens, config.text_config.max_position_embeddings)


def read_weights(path: Path, settings: EngineSettings, progress: Progress) -> dict[str, Tensor]:
    """Read only the weights, to the CPU, by their names in the model; raises ReleaseError.

    May be called while a model runs. Checkpoints with older tensor names are refused: transformers changes the default
    dtype of the whole process while it converts one.
    """
    _check_files(path)
    config = _config(path)
    dtype = weights.resolve_dtype(settings.dtype, config)
    state = weights.read(_shards(path), torch.device("cpu"), dtype, progress)
    try:
        return dict(weights.assemble(config, state).state_dict())
    except weights.StateMismatch as error:
        raise ReleaseError(
            f"the tensor names or shapes in {path} differ from the model's: weights that need conversion can only be "
            "loaded by a new process"
        ) from error


def _config(path: Path) -> Glm4vConfig:
    from transformers import Glm4vConfig

    try:
        return Glm4vConfig.from_pretrained(path)
    except Exception as error:
        raise ReleaseError(f"{path}/config.json is no valid {ARCHITECTURE} config: {_first_line(error)}") from error


def _build(path: Path, config: Glm4vConfig, state: dict[str, Tensor]) -> Glm4vForConditionalGeneration:
    """Return a model that uses the given tensors as its weights."""
    try:
        return weights.assemble(config, state)
    except weights.StateMismatch:
        pass  # older tensor names, which transformers can convert, or a defect, which it can report
    from transformers import Glm4vForConditionalGeneration

    try:
        model, report = Glm4vForConditionalGeneration.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=next(iter(state.values())).dtype if state else "auto",
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # reported by _check_report together with the rest
            output_loading_info=True,
        )
    except Exception as error:
        raise ReleaseError(f"no model can be built from the weights in {path}: {_first_line(error)}") from error
    _check_report(path, report)
    return model.to(next(iter(state.values())).device).eval()


def _check_files(path: Path) -> None:
    """Check what can be checked without transformers."""
    if not path.is_dir():
        raise ReleaseError(f"{path} is not a directory: the checkpoint of a release is expected there")
    for name in REQUIRED:
        _read_json(path / name)
    architectures = _read_json(path / "config.json").get("architectures") or ["no architecture"]
    if ARCHITECTURE not in architectures:
        raise ReleaseError(
            f"{path}/config.json names {', '.join(map(str, architectures))}; only {ARCHITECTURE} is supported"
        )
    templates = [path / "chat_template.jinja", path / "chat_template.json"]
    if not any(file.is_file() for file in templates) and "chat_template" not in _read_json(
        path / "tokenizer_config.json"
    ):
        raise ReleaseError(f"{path}/chat_template.jinja is missing")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ReleaseError(f"the device {name!r} of release.json cannot be used: {_first_line(error)}") from error
    return device


def _generation_config(path: Path, config: Glm4vConfig) -> tuple[GenerationConfig, frozenset[int]]:
    """Return the generation config and its end tokens."""
    from transformers import GenerationConfig

    try:
        generation_config = (
            GenerationConfig.from_pretrained(path)
            if (path / "generation_config.json").is_file()
            else GenerationConfig.from_model_config(config)
        )
    except Exception as error:
        raise ReleaseError(f"{path}/generation_config.json cannot be read: {_first_line(error)}") from error
    end = generation_config.eos_token_id
    if end is None:
        end = config.text_config.eos_token_id
    if end is None:
        raise ReleaseError(f"neither generation_config.json nor config.json in {path} has an eos_token_id")
    return generation_config, frozenset([end] if isinstance(end, int) else end)


def _shards(path: Path) -> list[Path]:
    if (path / INDEX).exists():
        files = _read_json(path / INDEX).get("weight_map")
        if not isinstance(files, Mapping) or not all(
            isinstance(file, str) and Path(file).name == file for file in files.values()
        ):
            raise ReleaseError(f"{path / INDEX} has no weight_map from tensors to file names")
        shards = [path / name for name in sorted(set(files.values()))]
    else:
        shards = [path / SINGLE]
    for shard in shards:
        if not shard.is_file():
            raise ReleaseError(f"{shard} is missing")
    return shards


def _check_report(path: Path, report: Mapping[str, Any]) -> None:
    """Refuse a model with missing weights, which transformers initialises randomly."""
    for key, problem in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "unexpected"),
        ("mismatched_keys", "of another shape:"),
    ):
        if names := sorted(str(name if isinstance(name, str) else name[0]) for name in report[key]):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ReleaseError(
                f"the weights in {path} do not match config.json: {problem} {', '.join(names[:3])}{more}"
            )
    if report["error_msgs"]:
        raise ReleaseError(f"no model can be built from the weights in {path}: {report['error_msgs'][0]}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ReleaseError(f"{file} is missing") from None
    except OSError as error:
        raise ReleaseError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{file} is not JSON: {_first_line(error)}") from error
    if not isinstance(document, dict):
        raise ReleaseError(f"{file} is not a JSON object")
    return document


def _first_line(error: Exception) -> str:
    """Return the first line of a library's error message, at most 300 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
