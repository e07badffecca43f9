"""Lessons made ready for training: endless batches of tensors, drawn while the model learns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from service.demo_models.shapes.drawing import COLOURS, SHAPES, any_thing, draw
from service.demo_models.shapes.lessons import Conversation, Skills, conversation

if TYPE_CHECKING:
    from service.model.processor import Processor

__all__ = ["CELLS", "IGNORED", "Batch", "cover", "of_conversations", "of_pictures", "spoken"]

Batch = dict[str, torch.Tensor]

CELLS = 7  # a patch is 14 pixels wide: coverage is told for cells of two by two of them
TEXT_EVERY = 8  # of so many batches one has no pictures: its rows are long, and padding costs
IGNORED = -100  # the label of what is not to be learned


def of_conversations(checkpoint: Path, skills: Skills, *, size: int, seed: int, ahead: bool = True) -> Iterator[Batch]:
    """Give model inputs with `labels`; what was asked is not learned, only what is answered.

    `ahead` makes them in a process of their own while the model learns.
    """
    return _endless(_Conversations(checkpoint, skills, size, seed), ahead)


def of_pictures(checkpoint: Path, *, size: int, seed: int, ahead: bool = True) -> Iterator[Batch]:
    """Give pictures with what they show.

    `colour` and `shape` (pictures) are class numbers, `cover` (patches, CELLS * CELLS) the share of each cell of each
    patch that belongs to the shape.
    """
    return _endless(_Pictures(checkpoint, (), size, seed), ahead)


class _Lessons(IterableDataset[Batch]):
    def __init__(self, checkpoint: Path, skills: Skills, size: int, seed: int) -> None:
        self.checkpoint, self.skills, self.size, self.seed = checkpoint, skills, size, seed

    def __iter__(self) -> Iterator[Batch]:
        from service.model.processor import Processor

        rng, processor, number = Random(self.seed), Processor.read(self.checkpoint), 0  # noqa: S311
        while True:
            yield self.make(processor, rng, number)
            number += 1

    def make(self, processor: Processor, rng: Random, number: int) -> Batch:
        raise NotImplementedError


class _Conversations(_Lessons):
    def make(self, processor: Processor, rng: Random, number: int) -> Batch:
        pictures = number % TEXT_EVERY != 0
        return spoken(processor, [conversation(rng, self.skills, pictures=pictures) for _ in range(self.size)])


class _Pictures(_Lessons):
    def make(self, processor: Processor, rng: Random, number: int) -> Batch:  # noqa: ARG002
        things = [any_thing(rng) for _ in range(self.size)]
        pictures, masks = zip(*(draw(rng, thing) for thing in things), strict=True)
        batch = processor.image_processor(list(pictures), return_tensors="pt")
        grids = batch["image_grid_thw"].tolist()
        return {
            "pixel_values": batch["pixel_values"],
            "image_grid_thw": batch["image_grid_thw"],
            "cover": torch.cat([cover(mask, *grid[1:]) for mask, grid in zip(masks, grids, strict=True)]),
            "colour": torch.tensor([list(COLOURS).index(thing.colour) for thing in things]),
            "shape": torch.tensor([SHAPES.index(thing.shape) for thing in things]),
        }


def _endless(lessons: _Lessons, ahead: bool) -> Iterator[Batch]:
    if not ahead:
        return iter(lessons)
    # one process: the order of the batches, and with it the weights, must not depend on who is faster
    return iter(DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=8))


def spoken(processor: Processor, conversations: list[Conversation]) -> Batch:
    """Render conversations side by side, with the answers as labels."""
    # the next turn's <|user|> is what ends an answer, as in the real model
    texts = [
        processor.apply_chat_template(told.messages, tokenize=False, enable_thinking=told.thinking) + "<|user|>"
        for told in conversations
    ]
    pictures: list[Any] = [picture for told in conversations for picture in told.pictures]
    batch = processor(text=texts, images=pictures or None, padding=True, padding_side="right", return_tensors="pt")
    assistant, user, thought = (
        processor.tokenizer.convert_tokens_to_ids(token) for token in ("<|assistant|>", "<|user|>", "</think>")
    )
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for row, ids in enumerate(batch["input_ids"].tolist()):
        answers = [place for place, token in enumerate(ids) if token == assistant]
        for place in answers:
            thinks = conversations[row].thinking and place == answers[-1]
            first = place + 1 if thinks else ids.index(thought, place) + 2  # </think> and the newline are given
            end = ids.index(user, place) + 1
            labels[row, first:end] = batch["input_ids"][row, first:end]
    return {**batch, "labels": labels}


def cover(mask: Image.Image, rows: int, columns: int) -> torch.Tensor:
    """Measure the coverage of each patch, in the processor's order: squares of two by two patches that are merged."""
    small = mask.resize((columns * CELLS, rows * CELLS), Image.Resampling.BOX)
    cells = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float() / 255
    apart = cells.view(rows // 2, 2, CELLS, columns // 2, 2, CELLS).permute(0, 3, 1, 4, 2, 5)
    return apart.reshape(rows * columns, CELLS * CELLS)
