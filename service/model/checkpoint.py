"""Reading a checkpoint as Hugging Face writes it; whatever is wrong with one is a ReleaseError in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.model import weights
from service.model.release import EngineSettings, ReleaseError
from service.model.weights import Progress

if TYPE_CHECKING:
    from service.model.processor import Processor

__all__ = ["ARCHITECTURE", "Checkpoint", "Progress", "load", "tensors"]

ARCHITECTURE = "Glm4vForConditionalGeneration"
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A model on its device, in evaluation mode, with what is needed to talk to it."""

    model: Any
    processor: Processor
    generation: Any  # transformers' GenerationConfig, as the checkpoint asks for it
    end: frozenset[int]  # token ids that end an answer
    context: int  # tokens of prompt and answer together


def load(path: Path, settings: EngineSettings, progress: Progress) -> Checkpoint:
    """Load the checkpoint directory `path`; raises ReleaseError naming the file at fault.

    `progress` is called with a step's name and the share of it that is done, 0.0 to 1.0.
    """
    _check(path)  # before seconds of imports
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
    generation, end = _generation(path, config)
    state = weights.read(_shards(path), device, weights.dtype(settings.dtype, config), progress)
    progress("building the model", 0.0)
    model = _build(path, config, state)
    progress("building the model", 1.0)
    return Checkpoint(model, processor, generation, end, config.text_config.max_position_embeddings)


def tensors(path: Path, settings: EngineSettings, progress: Progress) -> dict[str, Any]:
    """Read the weights alone, to the CPU, under the names that the model has for them; raises ReleaseError.

    It may run beside a model that answers. An older layout is refused: to translate one, the library changes the
    default dtype of the whole process for a while.
    """
    import torch

    _check(path)
    config = _config(path)
    state = weights.read(_shards(path), torch.device("cpu"), weights.dtype(settings.dtype, config), progress)
    try:
        return dict(weights.assemble(config, state).state_dict())
    except weights.OtherNames as error:
        raise ReleaseError(f"the weights in {path} have not the names that the model has for them") from error


def _config(path: Path) -> Any:
    from transformers import Glm4vConfig

    try:
        return Glm4vConfig.from_pretrained(path)
    except Exception as error:
        raise ReleaseError(f"{path}/config.json describes no {ARCHITECTURE}: {_first_line(error)}") from error


def _build(path: Path, config: Any, state: dict[str, Any]) -> Any:
    """Put the weights where they are into a model that has no memory of its own yet."""
    try:
        return weights.assemble(config, state)
    except weights.OtherNames:
        pass  # an older layout, which the library knows how to translate, or a wrong one, which it can explain
    from transformers import Glm4vForConditionalGeneration

    try:
        model, report = Glm4vForConditionalGeneration.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=next(iter(state.values())).dtype if state else "auto",
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # they are reported below, together with the rest
            output_loading_info=True,
        )
    except Exception as error:
        raise ReleaseError(f"the weights in {path} do not make a model: {_first_line(error)}") from error
    _check_weights(path, report)
    return model.to(next(iter(state.values())).device).eval()


def _check(path: Path) -> None:
    """Look at what can be seen without transformers."""
    if not path.is_dir():
        raise ReleaseError(f"{path} is not a directory: a release keeps its checkpoint there")
    for name in NEEDED:
        _read_json(path / name)
    named = _read_json(path / "config.json").get("architectures") or ["no architecture at all"]
    if ARCHITECTURE not in named:
        raise ReleaseError(f"{path}/config.json is of {', '.join(map(str, named))}; only {ARCHITECTURE} is served")
    templates = [path / "chat_template.jinja", path / "chat_template.json"]
    if not any(file.is_file() for file in templates) and "chat_template" not in _read_json(path / NEEDED[2]):
        raise ReleaseError(f"{path}/chat_template.jinja is missing")


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ReleaseError(f"the device {name!r} of release.json cannot be used: {_first_line(error)}") from error
    return device


def _generation(path: Path, config: Any) -> tuple[Any, frozenset[int]]:
    from transformers import GenerationConfig

    try:
        generation = (
            GenerationConfig.from_pretrained(path)
            if (path / "generation_config.json").is_file()
            else GenerationConfig.from_model_config(config)
        )
    except Exception as error:
        raise ReleaseError(f"{path}/generation_config.json cannot be read: {_first_line(error)}") from error
    end = generation.eos_token_id if generation.eos_token_id is not None else config.text_config.eos_token_id
    if end is None:
        raise ReleaseError(f"neither generation_config.json nor config.json in {path} names the eos_token_id")
    return generation, frozenset([end] if isinstance(end, int) else end)


def _shards(path: Path) -> list[Path]:
    if (path / INDEX).exists():
        files = _read_json(path / INDEX).get("weight_map")
        if not isinstance(files, Mapping) or not all(
            isinstance(file, str) and Path(file).name == file for file in files.values()
        ):
            raise ReleaseError(f"{path / INDEX} has no weight_map of tensors to files beside it")
        shards = [path / name for name in sorted(set(files.values()))]
    else:
        shards = [path / SINGLE]
    for shard in shards:
        if not shard.is_file():
            raise ReleaseError(f"{shard} is missing")
    return shards


def _check_weights(path: Path, report: Mapping[str, Any]) -> None:
    """Refuse a model with random numbers in it, which is what transformers fills gaps with."""
    for key, what in (
        ("missing_keys", "lack"),
        ("unexpected_keys", "have, and the architecture has not,"),
        ("mismatched_keys", "have in another shape than config.json says"),
    ):
        if found := sorted(str(name if isinstance(name, str) else name[0]) for name in report[key]):
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ReleaseError(f"the weights in {path} {what} {', '.join(found[:3])}{more}")
    if report["error_msgs"]:
        raise ReleaseError(f"the weights in {path} do not make a model: {report['error_msgs'][0]}")


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
    """Take what a person can use of a library's message."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
