"""Endless batches of tensors for training, generated while the model is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from service.demo_models.shapes.dataset import Conversation, Skills, sample_conversation
from service.demo_models.shapes.drawing import COLOURS, SHAPES, draw, sample_figure

if TYPE_CHECKING:
    from service.model.processor import Processor

__all__ = ["CELLS", "IGNORE_INDEX", "Batch", "collate", "conversation_batches", "patch_coverage", "picture_batches"]

Batch = dict[str, torch.Tensor]

CELLS = 7  # cells per edge of a patch, each of 2 by 2 pixels
TEXT_ONLY_EVERY = 8  # one batch of so many is text only: its answers are long, and would pad batches with pictures
IGNORE_INDEX = -100  # the label of tokens without a loss


def conversation_batches(
    checkpoint: Path, skills: Skills, *, size: int, seed: int, prefetch: bool = True
) -> Iterator[Batch]:
    """Yield model inputs with `labels` for the answers only.

    With `prefetch` they are generated in another process.
    """
    return _iterate(_Conversations(checkpoint, skills, size, seed), prefetch)


def picture_batches(checkpoint: Path, *, size: int, seed: int, prefetch: bool = True) -> Iterator[Batch]:
    """Yield pictures with their classes.

    `colour` and `shape`, of shape (pictures,), are class numbers. `coverage`, of shape (patches, CELLS * CELLS), is the
    fraction of each cell of a patch that the figure covers.
    """
    return _iterate(_Pictures(checkpoint, (), size, seed), prefetch)


class _Batches(IterableDataset[Batch]):
    def __init__(self, checkpoint: Path, skills: Skills, size: int, seed: int) -> None:
        self.checkpoint, self.skills, self.size, self.seed = checkpoint, skills, size, seed

    def __iter__(self) -> Iterator[Batch]:
        from service.model.processor import Processor

        rng, processor, step = Random(self.seed), Processor.read(self.checkpoint), 0  # noqa: S311
        while True:
            yield self.make(processor, rng, step)
            step += 1

    def make(self, processor: Processor, rng: Random, step: int) -> Batch:
        raise NotImplementedError


class _Conversations(_Batches):
    def make(self, processor: Processor, rng: Random, step: int) -> Batch:
        pictures = step % TEXT_ONLY_EVERY != 0
        return collate(processor, [sample_conversation(rng, self.skills, pictures=pictures) for _ in range(self.size)])


class _Pictures(_Batches):
    def make(self, processor: Processor, rng: Random, step: int) -> Batch:  # noqa: ARG002
        figures = [sample_figure(rng) for _ in range(self.size)]
        pictures, masks = zip(*(draw(rng, figure) for figure in figures), strict=True)
        batch = processor.image_processor(list(pictures), return_tensors="pt")
        grids = batch["image_grid_thw"].tolist()
        return {
            "pixel_values": batch["pixel_values"],
            "image_grid_thw": batch["image_grid_thw"],
            "coverage": torch.cat([patch_coverage(mask, *grid[1:]) for mask, grid in zip(masks, grids, strict=True)]),
            "colour": torch.tensor([list(COLOURS).index(figure.colour) for figure in figures]),
            "shape": torch.tensor([SHAPES.index(figure.shape) for figure in figures]),
        }


def _iterate(dataset: _Batches, prefetch: bool) -> Iterator[Batch]:
    if not prefetch:
        return iter(dataset)
    # one process, so that the order of the batches, and thus the weights, is deterministic
    return iter(DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=8))


def collate(processor: Processor, conversations: list[Conversation]) -> Batch:
    """Tokenize conversations and pad them on the right, with labels for the answers, their reasoning and stop token."""
    # <|user|> of the next turn ends an answer, as in the real model
    texts = [
        processor.apply_chat_template(item.messages, tokenize=False, enable_thinking=item.thinking) + "<|user|>"
        for item in conversations
    ]
    pictures: list[Any] = [picture for item in conversations for picture in item.pictures]
    batch = processor(text=texts, images=pictures or None, padding=True, padding_side="right", return_tensors="pt")
    assistant, user, end_think = (
        processor.tokenizer.convert_tokens_to_ids(token) for token in ("<|assistant|>", "<|user|>", "</think>")
    )
    labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    for row, ids in enumerate(batch["input_ids"].tolist()):
        answers = [position for position, token in enumerate(ids) if token == assistant]
        for start in answers:
            thinks = conversations[row].thinking and start == answers[-1]
            first = start + 1 if thinks else ids.index(end_think, start) + 2  # the prompt holds </think> and a newline
            end = ids.index(user, start) + 1
            labels[row, first:end] = batch["input_ids"][row, first:end]
    return {**batch, "labels": labels}


def patch_coverage(mask: Image.Image, rows: int, columns: int) -> torch.Tensor:
    """Return the coverage of each patch, in the processor's order: blocks of 2 by 2 merged patches, row by row."""
    small = mask.resize((columns * CELLS, rows * CELLS), Image.Resampling.BOX)
    cells = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float() / 255
    blocks = cells.view(rows // 2, 2, CELLS, columns // 2, 2, CELLS).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(rows * columns, CELLS * CELLS)
