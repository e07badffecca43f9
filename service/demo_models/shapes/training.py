"""Training: the eyes first, with heads that are thrown away, then the whole model on conversations.

Through the loss on words alone shapes are not learned in any reasonable time (an answer right one time in three, which
is chance). What helps is a target for the first layer of the eyes: which cells of a patch the shape covers, whatever
its colour.
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
from service.demo_models.shapes import batches
from service.demo_models.shapes.batches import Batch
from service.demo_models.shapes.drawing import COLOURS, SHAPES
from service.demo_models.shapes.lessons import Skills, corpus

__all__ = ["PLANS", "SIZE", "Plan", "train"]

SIZE = layout.Size(96, 3, 288, 4, (2, 2, 2), 64, 2, rope_theta=10_000.0, image_size=84)  # 0.7 M parameters
REPORT = 25  # steps from one line to the next
# Every picture is scaled to between 4 by 4 and 6 by 6 patches; two frames of it are counted.
SHORTEST, LONGEST = 2 * 56 * 56, 2 * 84 * 84


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train, in steps of `batch` conversations or pictures."""

    looking: int  # steps for the eyes alone
    talking: int
    batch: int = 32
    rate: float = 2e-3
    seed: int = 0
    ahead: bool = True  # make the lessons in a process of its own


PLANS = {"1.0.0": Plan(looking=0, talking=400), "1.1.0": Plan(looking=1200, talking=700)}  # colours need no practice


def train(out: Path, skills: Skills, plan: Plan, report: Callable[[str], None]) -> None:
    """Write a checkpoint trained with these skills to the directory `out`, made if need be.

    `report` is called with a line every so many steps. The same plan on the same machine gives the same weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = layout.write_tokenizer(out, corpus(skills), tokens=4096)
    layout.write_preprocessors(out, shortest=SHORTEST, longest=LONGEST)
    layout.write_chat_template(out)
    torch.manual_seed(plan.seed)
    model = _new_model(vocabulary)
    model.train()
    if plan.looking:
        _learn_to_look(model, batches.of_pictures(out, size=plan.batch, seed=plan.seed, ahead=plan.ahead), plan, report)
    conversations = batches.of_conversations(out, skills, size=plan.batch, seed=plan.seed, ahead=plan.ahead)
    _fit(
        list(model.named_parameters()),
        lambda batch: model(**batch, use_cache=False).loss,
        conversations,
        _Course("talking", plan.talking, plan.rate, report),
    )
    layout.write_weights(out, model.to(torch.bfloat16))


def _new_model(vocabulary: dict[str, int]) -> Any:
    from transformers import GenerationConfig, Glm4vForConditionalGeneration

    model = Glm4vForConditionalGeneration(layout.config(vocabulary, SIZE))
    with torch.no_grad():  # the default deviation of 0.02 is made for wide models: at this width learning stalls
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                deviation = parameter[0].numel() ** -0.5
                if "embed_tokens" in name:
                    deviation = 0.3
                elif "position_embedding" in name:
                    deviation = 0.05
                parameter.normal_(0, deviation)
    model.generation_config = GenerationConfig(do_sample=False, **layout.ends(vocabulary))
    return model


def _learn_to_look(model: Any, pictures: Iterator[Batch], plan: Plan, report: Callable[[str], None]) -> None:
    eyes = model.model.visual
    seen: dict[str, torch.Tensor] = {}
    heads = torch.nn.ModuleDict(
        {
            "cover": torch.nn.Linear(SIZE.vision_hidden, batches.CELLS**2),
            "colour": torch.nn.Linear(SIZE.hidden, len(COLOURS)),
            "shape": torch.nn.Linear(SIZE.hidden, len(SHAPES)),
        }
    )

    def loss(batch: Batch) -> torch.Tensor:
        grids = batch["image_grid_thw"]
        tokens = eyes(batch["pixel_values"], grid_thw=grids).pooler_output.split((grids.prod(-1) // 4).tolist())
        whole = torch.stack([picture.mean(0) for picture in tokens])
        total = 2 * functional.binary_cross_entropy_with_logits(heads["cover"](seen["first layer"]), batch["cover"])
        for fact in ("colour", "shape"):
            total = total + functional.cross_entropy(heads[fact](whole), batch[fact])
        return total

    hook = eyes.blocks[0].register_forward_hook(lambda _layer, _given, result: seen.update({"first layer": result}))
    try:
        parameters = [*eyes.named_parameters(), *heads.named_parameters("heads")]
        _fit(parameters, loss, pictures, _Course("looking", plan.looking, 1.5 * plan.rate, report))
    finally:
        hook.remove()


@dataclass(frozen=True)
class _Course:
    name: str
    steps: int
    rate: float
    report: Callable[[str], None]

    def pace(self, step: int) -> float:
        """Rise for fifty steps, then fall along a cosine to a fiftieth."""
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return min(1.0, (step + 1) / 50) * (0.02 + 0.98 * fall)


def _fit(
    parameters: list[tuple[str, torch.nn.Parameter]],
    loss: Callable[[Batch], torch.Tensor],
    lessons: Iterable[Batch],
    course: _Course,
) -> None:
    """Muon for the matrices, which makes them learn several times faster here, AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in parameters:
        inner = parameter.ndim == 2 and not any(word in name for word in ("embed", "lm_head", "heads"))
        (matrices if inner else rest).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=2 * course.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=course.rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, course.pace) for optimizer in optimizers]
    began, total = time.perf_counter(), 0.0
    for step, batch in zip(range(1, course.steps + 1), lessons, strict=False):
        lost = loss(batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        lost.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*matrices, *rest], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        total += lost.item()
        if step % REPORT == 0 or step == course.steps:
            mean = total / ((step - 1) % REPORT + 1)
            course.report(f"{course.name} {step}/{course.steps}, loss {mean:.4f}, {time.perf_counter() - began:.0f} s")
            total = 0.0
