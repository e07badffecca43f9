"""The model's forward pass over one step: one token of every decoding sequence, and chunks of prompts."""

from __future__ import annotations

import time
from collections import abc
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.engine import attention, compiler, fusion, kernels
from service.engine.attention import Chunk, Layout, SlotLayout
from service.engine.cache import Shape, SlotCache
from service.engine.chunk import chunk_inputs
from service.engine.graph import Graph
from service.engine.paged_cache import PagedCache
from service.engine.sequence import Sequence
from service.engine.transfer import upload

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

__all__ = ["Runner"]


class Runner:
    """Runs the model on the cache.

    With a paged cache a step is one pass over padded tokens, whose shape is one of a few, so that on CUDA every step
    replays a captured graph, whether prompts come in or not. With a slot cache it is one pass over exactly its tokens.
    If `pad` is set, by default on CUDA only, decoding rows replay a graph there too; chunks have a pass of their own.
    """

    def __init__(
        self, model: Glm4vForConditionalGeneration, cache: SlotCache | PagedCache, *, pad: bool | None = None
    ) -> None:
        attention.install(model)
        kernels.install(model)
        if compiler.works(model.device):
            fusion.install(model)
        self._text_model = model.model.language_model
        self._embed = model.get_input_embeddings()
        self._head = model.get_output_embeddings()
        self.cache = cache
        self.device: torch.device = model.device
        self._rows = torch.arange(cache.budget.rows, device=self.device)
        self._pad = self.device.type == "cuda" if pad is None else pad
        self._graphs: dict[Shape, Graph] = {}
        self.sampled: Tensor | None = None
        """Tokens of the last step, on the device, if some sequences have not read theirs."""

    @torch.inference_mode()
    def forward(self, decoding: abc.Sequence[Sequence], chunks: abc.Sequence[tuple[Sequence, int]]) -> Tensor:
        """Compute one token of each of `decoding` (rows 0, 1, …) and the given number of tokens of each chunk.

        Returns logits (sequences, vocabulary) on the device: those of the decoding sequences, then one for each chunk,
        after its last token. They are valid until the next call. Only the cache is modified, so a failed step can be
        run again.
        """
        if isinstance(self.cache, PagedCache):
            return self._replay(decoding, chunks)
        parts = []
        if self._pad and decoding:
            parts.append(self._replay(decoding, ()))
            decoding = ()
        if decoding or chunks:
            parts.append(self._run_exactly(self.cache, decoding, chunks))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.inference_mode()
    def warm_up(
        self, prompt_tokens: int, seconds: float = float("inf"), progress: abc.Callable[[float], None] = lambda _: None
    ) -> None:
        """Capture the usual shapes of steps of at most `prompt_tokens` prompt tokens; does nothing without padding.

        After `seconds` no other is begun; what is left is captured when it first occurs. `progress` is called with the
        part that is done, 0.0 to 1.0, before each shape: where kernels have to be compiled, one takes seconds.
        """
        if not (self._pad or isinstance(self.cache, PagedCache)):
            return
        end = time.monotonic() + seconds
        shapes = self.cache.common_shapes(prompt_tokens)
        for number, shape in enumerate(shapes):
            if time.monotonic() >= end:
                return
            progress(number / len(shapes))
            self._graph(shape, self._inputs(shape, (), ()))

    def _run(self, embeddings: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Run all layers on `embeddings` (tokens, hidden) at `positions` (3, tokens); return (tokens, hidden)."""
        hidden: Tensor = self._text_model(
            inputs_embeds=embeddings[None], position_ids=positions[:, None], cache=self.cache, layout=layout
        ).last_hidden_state[0]
        return hidden

    def _tensor(self, numbers: list[int]) -> Tensor:
        return upload(numbers, self.device, torch.long)

    def _last_tokens(self, decoding: abc.Sequence[Sequence], padding: int = 0) -> Tensor:
        """Return the last token of each sequence, then zeros: long (sequences + padding,), on the device."""
        known = [0 if sequence.unread else sequence.tokens[-1] for sequence in decoding]
        tokens = self._tensor(known + [0] * padding)
        if self.sampled is None:
            return tokens
        places = self._tensor([sequence.place if sequence.unread else -1 for sequence in decoding] + [-1] * padding)
        return torch.where(places < 0, tokens, self.sampled[places.clamp(min=0)])

    # steps of exactly the tokens that are needed

    def _run_exactly(
        self, cache: SlotCache, decoding: abc.Sequence[Sequence], chunks: abc.Sequence[tuple[Sequence, int]]
    ) -> Tensor:
        inputs = chunk_inputs(chunks, len(decoding))
        columns = [sequence.cached for sequence in decoding]
        positions = [sequence.cached + sequence.prompt.delta for sequence in decoding]
        ids = self._last_tokens(decoding)
        if inputs:
            ids = torch.cat([ids, self._tensor([token for chunk in inputs for token in chunk.ids])])
        embeddings: Tensor = self._embed(ids)
        for chunk in inputs:
            chunk.insert_features(embeddings)
        all_rows = torch.cat([torch.arange(len(decoding)), *(chunk.rows for chunk in inputs)])
        all_columns = torch.cat([torch.tensor(columns, dtype=torch.long), *(chunk.columns for chunk in inputs)])
        decoding_positions = torch.tensor(positions, dtype=torch.long).expand(3, -1)
        all_positions = torch.cat([decoding_positions, *(chunk.positions for chunk in inputs)], dim=1)
        cache.place(all_rows.to(self.device), all_columns.to(self.device))
        longest = max(columns, default=-1) + 1
        mask = cache.visible(self._tensor(columns), longest)[:, None, None] if decoding else None
        layout = SlotLayout(
            len(decoding),
            longest,
            mask,
            tuple(
                Chunk(
                    chunk.sequence.row,
                    chunk.start,
                    chunk.count,
                    chunk.offset,
                    cache.visible(chunk.columns.to(self.device), chunk.end) if chunk.start else None,
                )
                for chunk in inputs
            ),
        )
        hidden = self._run(embeddings, all_positions.to(self.device), layout)
        if inputs:
            hidden = hidden[self._tensor([*range(len(decoding)), *(chunk.last for chunk in inputs)])]
        logits: Tensor = self._head(hidden)
        return logits

    # steps of padded shapes

    def _replay(self, decoding: abc.Sequence[Sequence], chunks: abc.Sequence[tuple[Sequence, int]]) -> Tensor:
        longest = max((sequence.cached for sequence in decoding), default=0) + 1
        shape = self.cache.shape(len(decoding), longest, sum(count for _, count in chunks))
        inputs = self._inputs(shape, decoding, chunks)
        return self._graph(shape, inputs).replay(inputs)[: len(decoding) + len(chunks)]

    def _graph(self, shape: Shape, inputs: tuple[Tensor, ...]) -> Graph:
        self.cache.refresh()
        if shape not in self._graphs:

            def compute(decoding: Tensor, *chunk: Tensor) -> Tensor:
                return self._compute(shape, decoding, *chunk)

            beside = next(iter(self._graphs.values()), None)
            self._graphs[shape] = Graph(compute, inputs, self.device, beside=beside)
        return self._graphs[shape]

    def _inputs(
        self, shape: Shape, decoding: abc.Sequence[Sequence], chunks: abc.Sequence[tuple[Sequence, int]]
    ) -> tuple[Tensor, ...]:
        """Return the arguments of `_compute`; padding is written to the spare column."""
        spare = self.cache.spare_column
        padding = shape.rows - len(decoding)
        columns = [sequence.cached for sequence in decoding] + [spare] * padding
        positions = [sequence.cached + sequence.prompt.delta for sequence in decoding] + [0] * padding
        tokens = torch.stack([self._last_tokens(decoding, padding), self._tensor(columns), self._tensor(positions)])
        if not shape.chunk:
            return (tokens,)
        inputs = chunk_inputs(chunks, 0)
        ids = [token for chunk in inputs for token in chunk.ids]
        embeddings: Tensor = self._embed(self._tensor(ids + [0] * (shape.chunk - len(ids))))
        places = torch.zeros(5, shape.chunk, dtype=torch.long)
        places[1] = spare
        sampled = torch.zeros(self.cache.budget.rows, dtype=torch.long)
        sampled[: len(decoding)] = torch.arange(len(decoding))
        for number, chunk in enumerate(inputs, len(decoding)):
            chunk.insert_features(embeddings)
            span = slice(chunk.offset, chunk.last + 1)
            places[0, span], places[1, span], places[2:, span] = chunk.rows, chunk.columns, chunk.positions
            sampled[number] = shape.rows + chunk.last
        return tokens, embeddings, places, sampled

    def _compute(
        self,
        shape: Shape,
        decoding: Tensor,
        chunk_embeddings: Tensor | None = None,
        chunk_places: Tensor | None = None,
        sampled: Tensor | None = None,
    ) -> Tensor:
        """Return logits: (rows, vocabulary) without a chunk, else those of the tokens whose indices are `sampled`.

        `decoding` (3, rows) has token, column and position of each row, `chunk_places` (5, chunk) the row, the column
        and the three positions of each prompt token. This is the part that a CUDA graph captures.
        """
        ids, columns, positions = decoding
        rows, positions = self._rows[: shape.rows], positions.expand(3, -1)
        embeddings: Tensor = self._embed(ids)
        if chunk_embeddings is not None and chunk_places is not None:
            embeddings = torch.cat([embeddings, chunk_embeddings])
            rows = torch.cat([rows, chunk_places[0]])
            columns = torch.cat([columns, chunk_places[1]])
            positions = torch.cat([positions, chunk_places[2:]], dim=1)
        self.cache.place(rows, columns)
        hidden = self._run(embeddings, positions, self.cache.layout(shape, rows, columns))
        logits: Tensor = self._head(hidden if sampled is None else hidden[sampled])
        return logits
