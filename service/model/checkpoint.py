"""Loading of a checkpoint in Hugging Face's format; every defect raises ReleaseError."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from service.contract.engine_settings import EngineSettings, parse_device
from service.model import checkpoint_files, weights
from service.model.checkpoint_files import ARCHITECTURE, first_line
from service.model.imports import import_transformers
from service.model.release import Progress, ReleaseError

if TYPE_CHECKING:
    from transformers import GenerationConfig, Glm4vConfig, Glm4vForConditionalGeneration

    from service.model.processor import Processor

__all__ = ["ARCHITECTURE", "Checkpoint", "Companions", "load", "read_companions", "read_weights"]


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
    checkpoint_files.check(path)  # before transformers is imported, which takes seconds
    progress("importing", 0.0)
    import_transformers()
    from transformers.utils import logging

    progress("importing", 1.0)
    logging.disable_progress_bar()
    device = _device(settings.device)
    config = _config(path)
    processor = _processor(path)
    generation_config, end_tokens = _generation_config(path, config)
    state = weights.read(checkpoint_files.shards(path), device, weights.resolve_dtype(settings.dtype, config), progress)
    progress("building the model", 0.0)
    model = _build(path, config, state)
    progress("building the model", 1.0)
    return Checkpoint(model, processor, generation_config, end_tokens, config.text_config.max_position_embeddings)


@dataclass(frozen=True)
class Companions:
    """What an engine that loads the weights itself needs of a checkpoint; see Checkpoint."""

    processor: Processor
    generation_config: GenerationConfig
    end_tokens: frozenset[int]


def read_companions(path: Path) -> Companions:
    """Read what belongs to the weights, not the weights themselves, which may be quantised; raises ReleaseError."""
    checkpoint_files.check(path, quantised=True)
    config = _config(path)
    return Companions(_processor(path), *_generation_config(path, config))


def read_weights(path: Path, settings: EngineSettings, progress: Progress) -> dict[str, Tensor]:
    """Read only the weights, to the CPU, by their names in the model; raises ReleaseError.

    May be called while a model runs. Checkpoints with older tensor names are refused: transformers changes the default
    dtype of the whole process while it converts one.
    """
    checkpoint_files.check(path)
    config = _config(path)
    dtype = weights.resolve_dtype(settings.dtype, config)
    state = weights.read(checkpoint_files.shards(path), torch.device("cpu"), dtype, progress)
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
        raise ReleaseError(f"{path}/config.json is no valid {ARCHITECTURE} config: {first_line(error)}") from error


def _processor(path: Path) -> Processor:
    from service.model.processor import Processor

    try:
        return Processor.read(path)
    except Exception as error:
        raise ReleaseError(
            f"the tokenizer or the preprocessor in {path} cannot be read: {first_line(error)}"
        ) from error


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
        raise ReleaseError(f"no model can be built from the weights in {path}: {first_line(error)}") from error
    _check_report(path, report)
    return model.to(next(iter(state.values())).device).eval()


def _device(name: str) -> torch.device:
    """Return the device called `name` in a release's engine settings; raises ReleaseError if this host lacks it."""
    try:
        parse_device(name)  # torch has other kinds too, which the engine does not run on
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ReleaseError(f"the device {name!r} of release.json cannot be used: {first_line(error)}") from error
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
        raise ReleaseError(f"{path}/generation_config.json cannot be read: {first_line(error)}") from error
    end = generation_config.eos_token_id
    if end is None:
        end = config.text_config.eos_token_id
    if end is None:
        raise ReleaseError(f"neither generation_config.json nor config.json in {path} has an eos_token_id")
    return generation_config, frozenset([end] if isinstance(end, int) else end)


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
