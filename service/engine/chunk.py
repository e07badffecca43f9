"""The model inputs of the prompt tokens that a step computes."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from service.engine.sequence import Sequence
from service.engine.transfer import upload

__all__ = ["ChunkInput", "chunk_inputs"]


@dataclass(frozen=True)
class ChunkInput:
    """The next `count` uncomputed tokens of a sequence. `offset` is the index of the first in the step's tokens."""

    sequence: Sequence
    count: int
    offset: int

    @property
    def start(self) -> int:
        """Index of the first token in the sequence, and its column in the cache."""
        return self.sequence.cached

    @property
    def end(self) -> int:
        """The index after the last token."""
        return self.start + self.count

    @property
    def last(self) -> int:
        """Index of the last token in the step's tokens."""
        return self.offset + self.count - 1

    @property
    def ids(self) -> list[int]:
        """The token ids."""
        return self.sequence.ids(self.start, self.end)

    @property
    def rows(self) -> Tensor:
        """The cache row of each token."""
        return torch.full((self.count,), self.sequence.row, dtype=torch.long)

    @property
    def columns(self) -> Tensor:
        """The cache column of each token."""
        return torch.arange(self.start, self.end)

    @property
    def positions(self) -> Tensor:
        """Rope positions (3, count): of prompt tokens, then of output tokens that are recomputed after a preemption."""
        prompt = self.sequence.prompt
        in_prompt = prompt.positions[:, self.start : self.end]
        in_output = torch.arange(self.start + in_prompt.shape[1], self.end) + prompt.delta
        return torch.cat([in_prompt, in_output.expand(3, -1)], dim=1)

    def insert_features(self, embeddings: Tensor) -> None:
        """Replace the embeddings of image placeholders by image features, in place; `embeddings` (tokens, hidden)."""
        prompt, features = self.sequence.prompt, self.sequence.features
        if features is None:
            return
        first = int(prompt.is_image[: self.start].sum())
        indices = prompt.is_image[self.start : self.end].nonzero()[:, 0]
        if len(indices):
            features = features[first : first + len(indices)]
            places = upload(self.offset + indices, embeddings.device, torch.long)
            embeddings[places] = features.to(embeddings.dtype)


def chunk_inputs(chunks: abc.Sequence[tuple[Sequence, int]], offset: int) -> list[ChunkInput]:
    """Return the inputs of chunks that follow each other, the first at index `offset`."""
    inputs = []
    for sequence, count in chunks:
        inputs.append(ChunkInput(sequence, count, offset))
        offset += count
    return inputs
