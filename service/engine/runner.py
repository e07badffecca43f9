"""The model's forward pass over one step: one token of every decoding sequence, and chunks of prompts."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.engine import attention, kernels
from service.engine.attention import BatchLayout, Chunk
from service.engine.cache import SlotCache
from service.engine.sequence import Sequence

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

__all__ = ["Runner"]

_MIN_COLUMNS = 256  # captured graphs attend to this many columns, or 2, 4, 8, … times as many


class Runner:
    """Runs the model on the cache.

    `pad` rounds the shapes of decode-only steps up to a few sizes, so that CUDA graphs can be replayed; by default it
    is on for CUDA devices only.
    """

    def __init__(self, model: Glm4vForConditionalGeneration, cache: SlotCache, *, pad: bool | None = None) -> None:
        attention.install(model)
        kernels.install(model)
        self._text_model = model.model.language_model
        self._embed = model.get_input_embeddings()
        self._head = model.get_output_embeddings()
        self.cache = cache
        self.device: torch.device = model.device
        self._columns = torch.arange(cache.budget.columns, device=self.device)
        self._rows = torch.arange(cache.budget.rows, device=self.device)
        self._pad = self.device.type == "cuda" if pad is None else pad
        self._graphs: dict[tuple[int, int], _DecodeGraph] = {}

    @torch.inference_mode()
    def forward(self, decoding: abc.Sequence[Sequence], chunks: abc.Sequence[tuple[Sequence, int]]) -> Tensor:
        """Compute one token of each of `decoding` (rows 0, 1, …) and the given number of tokens of each chunk.

        Returns logits (sequences, vocabulary) on the device: those of the decoding sequences, then one for each chunk,
        after its last token. Only the cache is modified, so a failed step can be run again.
        """
        if not chunks and self._pad:
            return self._forward_padded(decoding)
        ids = [sequence.tokens[-1] for sequence in decoding]
        columns = [sequence.cached for sequence in decoding]
        positions = [sequence.cached + sequence.prompt.delta for sequence in decoding]
        layout, inputs = self._layout(decoding, chunks)
        embeddings: Tensor = self._embed(self._tensor([*ids, *(token for chunk in inputs for token in chunk.ids)]))
        for chunk in inputs:
            chunk.insert_features(embeddings)
        all_rows = torch.cat([torch.arange(len(decoding)), *(chunk.rows for chunk in inputs)])
        all_columns = torch.cat([torch.tensor(columns, dtype=torch.long), *(chunk.columns for chunk in inputs)])
        decoding_positions = torch.tensor(positions, dtype=torch.long).expand(3, -1)
        all_positions = torch.cat([decoding_positions, *(chunk.positions for chunk in inputs)], dim=1)
        self.cache.place(all_rows.to(self.device), all_columns.to(self.device))
        hidden = self._run(embeddings, all_positions.to(self.device), layout)
        if inputs:
            last = (chunk.offset + chunk.count - 1 for chunk in layout.chunks)
            hidden = hidden[self._tensor([*range(len(decoding)), *last])]
        logits: Tensor = self._head(hidden)
        return logits

    def warm_up(self) -> None:
        """Capture the shortest decode graph for every number of rows; does nothing without padding."""
        if self._pad:
            for rows in _sizes(1, self.cache.budget.rows):
                self._graph(rows, min(_MIN_COLUMNS, self.cache.budget.columns))

    def _run(self, embeddings: Tensor, positions: Tensor, layout: BatchLayout) -> Tensor:
        """Run all layers on `embeddings` (tokens, hidden) at `positions` (3, tokens); return (tokens, hidden)."""
        hidden: Tensor = self._text_model(
            inputs_embeds=embeddings[None], position_ids=positions[:, None], cache=self.cache, layout=layout
        ).last_hidden_state[0]
        return hidden

    def _layout(
        self, decoding: abc.Sequence[Sequence], chunks: abc.Sequence[tuple[Sequence, int]]
    ) -> tuple[BatchLayout, list[_ChunkInput]]:
        columns, mask = 0, None
        if decoding:
            lengths = [sequence.cached for sequence in decoding]
            columns = max(lengths) + 1
            mask = (self._columns[:columns] <= self._tensor(lengths)[:, None])[:, None, None]
        inputs: list[_ChunkInput] = []
        offset = len(decoding)
        for sequence, count in chunks:
            start, end = sequence.cached, sequence.cached + count
            chunk_mask = None if start == 0 else self._columns[:end] <= self._columns[start:end, None]
            inputs.append(_ChunkInput(sequence, Chunk(sequence.row, start, count, offset, chunk_mask)))
            offset += count
        return BatchLayout(len(decoding), columns, mask, tuple(chunk.chunk for chunk in inputs)), inputs

    def _tensor(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    # decode-only steps of padded shapes

    def _forward_padded(self, decoding: abc.Sequence[Sequence]) -> Tensor:
        """Decode with rows rounded up. Padding rows write to column 0, which a later prefill overwrites."""
        count = len(decoding)
        rows = next(size for size in _sizes(1, self.cache.budget.rows) if size >= count)
        needed = max(sequence.cached for sequence in decoding) + 1
        columns = next(size for size in _sizes(_MIN_COLUMNS, self.cache.budget.columns) if size >= needed)
        padding = [0] * (rows - count)
        inputs = torch.tensor(
            [
                [sequence.tokens[-1] for sequence in decoding] + padding,
                [sequence.cached for sequence in decoding] + padding,
                [sequence.cached + sequence.prompt.delta for sequence in decoding] + padding,
            ],
            dtype=torch.long,
        )
        return self._graph(rows, columns).replay(inputs)[:count]

    def _graph(self, rows: int, columns: int) -> _DecodeGraph:
        if (rows, columns) not in self._graphs:
            self._graphs[rows, columns] = _DecodeGraph(self, rows, columns)
        return self._graphs[rows, columns]

    def decode_padded(self, inputs: Tensor, rows: int, columns: int) -> Tensor:
        """Return logits (rows, vocabulary) for `inputs` (3, rows) on the device: token, column and position.

        This is the part that a CUDA graph captures.
        """
        tokens, token_columns, positions = inputs
        mask = (self._columns[:columns] <= token_columns[:, None])[:, None, None]
        self.cache.place(self._rows[:rows], token_columns)
        hidden = self._run(self._embed(tokens), positions.expand(3, -1), BatchLayout(rows, columns, mask))
        logits: Tensor = self._head(hidden)
        return logits


class _DecodeGraph:
    """A decode step of fixed shape. On CUDA it is captured once and replayed without Python; elsewhere it is run."""

    def __init__(self, runner: Runner, rows: int, columns: int) -> None:
        self._runner, self._rows, self._columns = runner, rows, columns
        self._graph: torch.cuda.CUDAGraph | None = None
        if runner.device.type != "cuda":
            return
        self._inputs = torch.zeros(3, rows, dtype=torch.long, device=runner.device)
        for _ in range(2):  # libraries allocate their workspaces at the first call, which a capture must not do
            runner.decode_padded(self._inputs, rows, columns)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the vision encoder may allocate memory in another thread meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits = runner.decode_padded(self._inputs, rows, columns)

    def replay(self, inputs: Tensor) -> Tensor:
        if self._graph is None:
            return self._runner.decode_padded(inputs.to(self._runner.device), self._rows, self._columns)
        self._inputs.copy_(inputs)
        self._graph.replay()
        return self._logits


@dataclass(frozen=True)
class _ChunkInput:
    """A chunk together with its sequence: the model inputs for it."""

    sequence: Sequence
    chunk: Chunk

    @property
    def end(self) -> int:
        return self.chunk.start + self.chunk.count

    @property
    def ids(self) -> list[int]:
        return self.sequence.ids(self.chunk.start, self.end)

    @property
    def rows(self) -> Tensor:
        return torch.full((self.chunk.count,), self.chunk.row, dtype=torch.long)

    @property
    def columns(self) -> Tensor:
        return torch.arange(self.chunk.start, self.end)

    @property
    def positions(self) -> Tensor:
        """Rope positions (3, count): of prompt tokens, then of output tokens that are recomputed after a preemption."""
        prompt = self.sequence.prompt
        in_prompt = prompt.positions[:, self.chunk.start : self.end]
        in_output = torch.arange(self.chunk.start + in_prompt.shape[1], self.end) + prompt.delta
        return torch.cat([in_prompt, in_output.expand(3, -1)], dim=1)

    def insert_features(self, embeddings: Tensor) -> None:
        """Replace the embeddings of image placeholders by image features, in place."""
        prompt, features = self.sequence.prompt, self.sequence.features
        if features is None:
            return
        first = int(prompt.is_image[: self.chunk.start].sum())
        indices = prompt.is_image[self.chunk.start : self.end].nonzero()[:, 0]
        if len(indices):
            features = features[first : first + len(indices)]
            embeddings[self.chunk.offset + indices.to(embeddings.device)] = features.to(embeddings.dtype)


def _sizes(first: int, last: int) -> list[int]:
    """Return `first` times 1, 2, 4, … below `last`, then `last`."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return [*sizes, last]
