"""Training: pretraining of the vision tower with auxiliary heads, then of the whole model on conversations.

With the language loss alone shapes are not learned in reasonable time: accuracy stays at chance, one in three. An
auxiliary loss on the first vision layer solves it: the coverage of each cell of a patch, whatever the colour.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from service.demo_models import layout
from service.demo_models.shapes import batching
from service.demo_models.shapes.batching import Batch
from service.demo_models.shapes.dataset import Skills, tokenizer_corpus
from service.demo_models.shapes.drawing import COLOURS, SHAPES

__all__ = ["PLANS", "SIZE", "Plan", "train"]

SIZE = layout.Size(96, 3, 288, 4, (2, 2, 2), 64, 2, rope_theta=10_000.0, image_size=84)  # 0.7 M parameters
REPORT_STEPS = 25  # steps between two reports
# Every picture is scaled to between 4 by 4 and 6 by 6 patches of 14 pixels; the limits count two frames.
MIN_PIXELS, MAX_PIXELS = 2 * 56 * 56, 2 * 84 * 84


@dataclass(frozen=True)
class Plan:
    """Steps, batch size, learning rate and seed of a training."""

    vision_steps: int
    conversation_steps: int
    batch_size: int = 32  # pictures, or conversations
    learning_rate: float = 2e-3
    seed: int = 0
    prefetch: bool = True  # generate batches in another process


# colours alone need no vision pretraining
PLANS = {
    "1.0.0": Plan(vision_steps=0, conversation_steps=400),
    "1.1.0": Plan(vision_steps=1200, conversation_steps=700),
}


def train(out: Path, skills: Skills, plan: Plan, report: Callable[[str], None]) -> None:
    """Train a model with these skills and write its checkpoint to the directory `out`, which is created if missing.

    `report` is called with a progress line every REPORT_STEPS. The same plan on the same machine gives the same
    weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = layout.write_tokenizer(out, tokenizer_corpus(skills), tokens=4096)
    layout.write_preprocessors(out, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    layout.write_chat_template(out)
    torch.manual_seed(plan.seed)
    model = _new_model(vocabulary)
    model.train()
    if plan.vision_steps:
        pictures = batching.picture_batches(out, size=plan.batch_size, seed=plan.seed, prefetch=plan.prefetch)
        _pretrain_vision(model, pictures, plan, report)
    conversations = batching.conversation_batches(
        out, skills, size=plan.batch_size, seed=plan.seed, prefetch=plan.prefetch
    )
    _fit(
        list(model.named_parameters()),
        lambda batch: model(**batch, use_cache=False).loss,
        conversations,
        _Stage("conversations", plan.conversation_steps, plan.learning_rate, report),
    )
    layout.write_weights(out, model.to(torch.bfloat16))


def _new_model(vocabulary: dict[str, int]) -> Any:
    from transformers import GenerationConfig, Glm4vForConditionalGeneration

    model = Glm4vForConditionalGeneration(layout.config(vocabulary, SIZE))
    with torch.no_grad():  # the default deviation of 0.02 is too small at this width: training stalls
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                deviation = parameter[0].numel() ** -0.5
                if "embed_tokens" in name:
                    deviation = 0.3
                elif "position_embedding" in name:
                    deviation = 0.05
                parameter.normal_(0, deviation)
    model.generation_config = GenerationConfig(do_sample=False, **layout.stop_token_ids(vocabulary))
    return model


def _pretrain_vision(model: Any, pictures: Iterator[Batch], plan: Plan, report: Callable[[str], None]) -> None:
    vision = model.model.visual
    first_layer: dict[str, torch.Tensor] = {}
    heads = torch.nn.ModuleDict(
        {
            "coverage": torch.nn.Linear(SIZE.vision_hidden, batching.CELLS**2),
            "colour": torch.nn.Linear(SIZE.hidden, len(COLOURS)),
            "shape": torch.nn.Linear(SIZE.hidden, len(SHAPES)),
        }
    )

    def loss(batch: Batch) -> torch.Tensor:
        grids = batch["image_grid_thw"]
        tokens = vision(batch["pixel_values"], grid_thw=grids).pooler_output.split((grids.prod(-1) // 4).tolist())
        pooled = torch.stack([picture.mean(0) for picture in tokens])
        total = 2 * functional.binary_cross_entropy_with_logits(
            heads["coverage"](first_layer["output"]), batch["coverage"]
        )
        for label in ("colour", "shape"):
            total = total + functional.cross_entropy(heads[label](pooled), batch[label])
        return total

    hook = vision.blocks[0].register_forward_hook(lambda _layer, _inputs, output: first_layer.update(output=output))
    try:
        parameters = [*vision.named_parameters(), *heads.named_parameters("heads")]
        _fit(parameters, loss, pictures, _Stage("vision", plan.vision_steps, 1.5 * plan.learning_rate, report))
    finally:
        hook.remove()


@dataclass(frozen=True)
class _Stage:
    name: str
    steps: int
    learning_rate: float
    report: Callable[[str], None]

    def lr_factor(self, step: int) -> float:
        """Return the learning rate's factor: linear warm-up over 50 steps, cosine decay to 0.02."""
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return min(1.0, (step + 1) / 50) * (0.02 + 0.98 * decay)


def _fit(
    parameters: list[tuple[str, torch.nn.Parameter]],
    loss: Callable[[Batch], torch.Tensor],
    batches: Iterable[Batch],
    stage: _Stage,
) -> None:
    """Minimize the loss: Muon for the matrices, where it converges several times faster, AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in parameters:
        use_muon = parameter.ndim == 2 and not any(word in name for word in ("embed", "lm_head", "heads"))
        (matrices if use_muon else rest).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=2 * stage.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, stage.lr_factor) for optimizer in optimizers]
    started, total = time.perf_counter(), 0.0
    for step, batch in zip(range(1, stage.steps + 1), batches, strict=False):
        value = loss(batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*matrices, *rest], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        total += value.item()
        if step % REPORT_STEPS == 0 or step == stage.steps:
            mean = total / ((step - 1) % REPORT_STEPS + 1)
            stage.report(f"{stage.name} {step}/{stage.steps}, loss {mean:.4f}, {time.perf_counter() - started:.0f} s")
            total = 0.0
