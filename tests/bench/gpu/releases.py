"""Two releases with random weights, of the shape of GLM-4.6V-Flash or of a small model, imported by glmctl.

The weights are written shard by shard as they are drawn, so that they need the memory of one shard. A checkpoint is
deleted once it has been imported; the disk holds three copies of the weights at most.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import GlmError
from service.contract.slots import SLOTS, Slots
from tests.bench.gpu.report import Report

__all__ = [
    "GLMCTL",
    "SIZES",
    "VERSIONS",
    "Plan",
    "make",
    "remove",
    "require_space",
    "shard_names",
    "shards",
    "tensor_shapes",
    "write_checkpoint",
]

VERSIONS = ("1.0.0", "1.1.0")
GLMCTL = str(Path(sys.executable).with_name("glmctl"))
_SHARD = 4 << 30  # bytes; as the model is published
_RESERVE = 1 << 30  # bytes
_KIND = "releases.json"  # what the releases in a directory are
SIZES = {"9b": 20_600_000_000, "small": 30_000_000}  # bytes of a release, rounded up


@dataclass(frozen=True)
class Plan:
    """What is measured: releases of `shape` below `directory`, on `device` (cuda or cpu)."""

    shape: str
    device: str
    directory: Path
    quick: bool = False
    kv_tokens: int = 0

    @property
    def root(self) -> Path:
        """The root of the installation: its releases and the symlinks of its slots."""
        return self.directory / "root"

    @property
    def model(self) -> Path:
        """The checkpoint of the first release."""
        return self.root / "releases" / VERSIONS[0] / "model"

    @property
    def kind(self) -> dict[str, Any]:
        """What the releases are made for; others are not used."""
        return {"shape": self.shape, "device": self.device, "kv_tokens": self.kv_tokens}

    def clear_slots(self) -> None:
        """Remove the slots' symlinks of an earlier server."""
        slots = Slots(self.root)
        slots.go_live(None)
        for slot in SLOTS:
            slots.point(slot, None)


def shards(plan: Plan) -> list[Path]:
    """Return the files of the first release's weights."""
    return sorted(plan.model.glob("*.safetensors"))


def require_space(plan: Plan) -> None:
    """Raise GlmError if the directory holds releases of another kind, or the disk cannot hold those to be made."""
    with suppress(FileNotFoundError):
        if (found := json.loads((plan.directory / _KIND).read_text())) != plan.kind:
            described = (
                f"the shape {found['shape']} for {found['device']} with {found['kv_tokens'] or 'default'} KV tokens"
            )
            raise GlmError(f"{plan.directory} holds releases of {described}", hint="choose another --dir, or remove it")
    missing = sum(not (plan.root / "releases" / version).exists() for version in VERSIONS)
    needed = (missing + 1) * SIZES[plan.shape] + _RESERVE if missing else _RESERVE
    free = shutil.disk_usage(plan.directory).free
    if free < needed:
        raise GlmError(
            f"{plan.directory} has {free / 1e9:.1f} GB free; the releases of the shape {plan.shape} need "
            f"{needed / 1e9:.1f} GB while they are made",
            hint="--dir names another directory, such as one below /dev/shm; --shape small needs little",
        )


def remove(directory: Path) -> None:
    """Remove the directory with its releases, which are read-only."""
    for path in [directory, *directory.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(directory)


def make(plan: Plan, report: Report) -> None:
    """Make the releases that are missing below `plan.directory`; raises GlmError if glmctl refuses one."""
    env = os.environ | {"GLM_USER": "1", "GLM_ROOT": str(plan.root)}
    (plan.directory / _KIND).write_text(json.dumps(plan.kind))
    for seed, version in enumerate(VERSIONS, 1):
        if (plan.root / "releases" / version).exists():
            report.say(f"  release {version} of an earlier run is used")
            continue
        checkpoint = plan.directory / "checkpoint"
        shutil.rmtree(checkpoint, ignore_errors=True)
        with report.step(f"release {version}: random weights", 1.0) as step:
            write_checkpoint(checkpoint, plan, seed, step.update)
        started = time.monotonic()
        with report.step(f"release {version}: glmctl release add"):
            done = subprocess.run(
                [GLMCTL, "release", "add", str(checkpoint), "--version", version],
                env=env,
                capture_output=True,
                text=True,
            )
        if done.returncode:
            raise GlmError(f"glmctl release add: {done.stderr.strip()}")
        if version == VERSIONS[0]:
            report.figure("digests.add", time.monotonic() - started)
        shutil.rmtree(checkpoint)


def write_checkpoint(out: Path, plan: Plan, seed: int, progress: Callable[[float], None]) -> None:
    """Write a checkpoint; `progress` is called with the part of the weights that is written, 0.0 to 1.0."""
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    from service.demo_models import layout, tiny

    out.mkdir(parents=True)
    vocabulary = layout.write_tokenizer(out, tiny.corpus(), tokens=1500)
    config = _configuration(plan.shape, vocabulary)
    config.save_pretrained(out)
    GenerationConfig(
        do_sample=True, temperature=0.8, top_p=0.6, top_k=2, **layout.stop_token_ids(vocabulary)
    ).save_pretrained(out)
    layout.write_preprocessors(out)
    layout.write_chat_template(out)
    settings = {"device": "cpu" if plan.device == "cpu" else "auto", "kv_tokens": plan.kv_tokens}
    (out / "engine.json").write_text(json.dumps(settings))
    shapes = tensor_shapes(config)
    device = torch.device(plan.device)
    generator = torch.Generator(device).manual_seed(seed)
    answers = torch.tensor(tiny.word_tokens(vocabulary), device=device)
    total = sum(_bytes(shape) for shape in shapes.values())
    groups, written = list(shard_names(shapes)), 0
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file, tensors = f"model-{number:05}-of-{len(groups):05}.safetensors", {}
        for name in names:
            noise = torch.empty(shapes[name], dtype=torch.bfloat16, device=device).normal_(generator=generator)
            tensors[name] = tiny.initial_values(name, noise, answers).cpu()
            written += tensors[name].nbytes
            progress(written / total)
        save_file(tensors, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _configuration(shape: str, vocabulary: dict[str, int]) -> Any:
    """Return the configuration of the shape, with the tokens of the vocabulary."""
    from service.demo_models import layout, tiny
    from tests.bench import device

    config, tokens = device.config(shape), layout.config(vocabulary, tiny.SIZES["tiny"])
    for name in ("image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id",
                 "video_start_token_id", "video_end_token_id"):  # fmt: skip
        setattr(config, name, getattr(tokens, name))
    for name in ("eos_token_id", "pad_token_id", "max_position_embeddings"):
        setattr(config.text_config, name, getattr(tokens.text_config, name))
    config.architectures, config.dtype = ["Glm4vForConditionalGeneration"], "bfloat16"
    return config


def tensor_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a model, by name, without memory for them."""
    import torch
    from transformers import Glm4vForConditionalGeneration

    with torch.device("meta"):
        model = Glm4vForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def shard_names(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Yield the names of the tensors of each shard, in their order."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + _bytes(shape) > _SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += _bytes(shape)
    yield names


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)  # bfloat16
