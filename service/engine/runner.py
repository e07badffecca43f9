"""The model's forward pass over whatever one step holds: a token of every running request, and chunks of prompts."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import torch

from service.engine import attention, kernels
from service.engine.attention import Chunk, Line
from service.engine.cache import SlotCache
from service.engine.sequence import Sequence

__all__ = ["Runner"]

_COLUMN_STEP = 256  # captured graphs read this many columns, or twice, four times, … as many


class Runner:
    """Runs the model on the cache. `pad` rounds decode steps up to a few sizes, so that graphs can be replayed."""

    def __init__(self, model: Any, cache: SlotCache, *, pad: bool | None = None) -> None:
        attention.install(model)
        kernels.install(model)
        self._text = model.model.language_model
        self._embed = model.get_input_embeddings()
        self._head = model.get_output_embeddings()
        self.cache = cache
        self.device = model.device
        self._columns = torch.arange(cache.budget.columns, device=self.device)
        self._rows = torch.arange(cache.budget.rows, device=self.device)
        self._pad = self.device.type == "cuda" if pad is None else pad
        self._graphs: dict[tuple[int, int], _Graph] = {}

    @torch.inference_mode()
    def forward(self, decoding: Many[Sequence], chunks: Many[tuple[Sequence, int]]) -> Any:
        """Take in one token of each of `decoding` (rows 0, 1, …) and so many tokens of each chunk's sequence.

        Returns logits (sequences, vocabulary), on the device: of all decoding ones, then of every chunk in order; a
        chunk's are those after its last token. Nothing but the cache is changed: a step that failed can be run again.
        """
        if not chunks and self._pad:
            return self._forward_padded(decoding)
        ids = [sequence.tokens[-1] for sequence in decoding]
        columns = [sequence.cached for sequence in decoding]
        positions = [sequence.cached + sequence.prompt.delta for sequence in decoding]
        line, spans = self._lay(decoding, chunks)
        hidden = self._embed(self._tensor([*ids, *(token for span in spans for token in span.ids)]))
        for span in spans:
            span.show(hidden)
        rows = torch.cat([torch.arange(len(decoding)), *(span.rows for span in spans)])
        places = torch.cat([torch.tensor(columns, dtype=torch.long), *(span.columns for span in spans)])
        decoded = torch.tensor(positions, dtype=torch.long).expand(3, -1)
        where = torch.cat([decoded, *(span.positions for span in spans)], dim=1)
        self.cache.place(rows.to(self.device), places.to(self.device))
        said = self._run(hidden, where.to(self.device), line)
        if spans:
            last = [*range(len(decoding)), *(span.chunk.offset + span.chunk.count - 1 for span in spans)]
            said = said[self._tensor(last)]
        return self._head(said)

    def warm_up(self) -> None:
        """Capture the decode steps that will be replayed most, of every number of rows; does nothing without graphs."""
        if self._pad:
            for rows in _sizes(self.cache.budget.rows, 1):
                self._graph(rows, min(_COLUMN_STEP, self.cache.budget.columns))

    def _run(self, hidden: Any, positions: Any, line: Line) -> Any:
        """Run all layers over embeddings (tokens, hidden); `positions` are (3, tokens)."""
        return self._text(
            inputs_embeds=hidden[None], position_ids=positions[:, None], cache=self.cache, line=line
        ).last_hidden_state[0]

    def _lay(self, decoding: Many[Sequence], chunks: Many[tuple[Sequence, int]]) -> tuple[Line, list[_Span]]:
        columns, mask = 0, None
        if decoding:
            lengths = [sequence.cached for sequence in decoding]
            columns = max(lengths) + 1
            mask = (self._columns[:columns] <= self._tensor(lengths)[:, None])[:, None, None]
        spans: list[_Span] = []
        offset = len(decoding)
        for sequence, count in chunks:
            start, end = sequence.cached, sequence.cached + count
            seen = None if start == 0 else self._columns[:end] <= self._columns[start:end, None]
            spans.append(_Span(sequence, Chunk(sequence.row, start, count, offset, seen)))
            offset += count
        return Line(len(decoding), columns, mask, tuple(span.chunk for span in spans)), spans

    def _tensor(self, numbers: list[int]) -> Any:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    # decode steps of a few sizes only

    def _forward_padded(self, decoding: Many[Sequence]) -> Any:
        """Decode on rows rounded up: rows that nobody uses take a token in at column 0, which nobody reads."""
        count = len(decoding)
        rows = next(size for size in _sizes(self.cache.budget.rows, 1) if size >= count)
        needed = max(sequence.cached for sequence in decoding) + 1
        columns = next(size for size in _sizes(self.cache.budget.columns, _COLUMN_STEP) if size >= needed)
        none = [0] * (rows - count)
        state = torch.tensor(
            [
                [sequence.tokens[-1] for sequence in decoding] + none,
                [sequence.cached for sequence in decoding] + none,
                [sequence.cached + sequence.prompt.delta for sequence in decoding] + none,
            ],
            dtype=torch.long,
        )
        return self._graph(rows, columns).replay(state)[:count]

    def _graph(self, rows: int, columns: int) -> _Graph:
        if (rows, columns) not in self._graphs:
            self._graphs[rows, columns] = _Graph(self, rows, columns)
        return self._graphs[rows, columns]

    def decode_padded(self, state: Any, rows: int, columns: int) -> Any:
        """Decode from `state` (3, rows) on the device: token, column and position; what a graph captures."""
        tokens, places, positions = state
        mask = (self._columns[:columns] <= places[:, None])[:, None, None]
        self.cache.place(self._rows[:rows], places)
        hidden = self._run(self._embed(tokens), positions.expand(3, -1), Line(rows, columns, mask))
        return self._head(hidden)


class _Graph:
    """One decode step of fixed size. On CUDA it is captured once and replayed without Python; elsewhere it is run."""

    def __init__(self, runner: Runner, rows: int, columns: int) -> None:
        self._runner, self._rows, self._columns = runner, rows, columns
        self._graph: Any = None
        if runner.device.type != "cuda":
            return
        self._state = torch.zeros(3, rows, dtype=torch.long, device=runner.device)
        for _ in range(2):  # libraries allocate their workspaces at the first call, which a capture must not
            runner.decode_padded(self._state, rows, columns)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the vision tower, in another thread, may allocate meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits = runner.decode_padded(self._state, rows, columns)

    def replay(self, state: Any) -> Any:
        if self._graph is None:
            return self._runner.decode_padded(state.to(self._runner.device), self._rows, self._columns)
        self._state.copy_(state)
        self._graph.replay()
        return self._logits


@dataclass(frozen=True)
class _Span:
    """A chunk and the sequence it is of."""

    sequence: Sequence
    chunk: Chunk

    @property
    def end(self) -> int:
        return self.chunk.start + self.chunk.count

    @property
    def ids(self) -> list[int]:
        return self.sequence.ids(self.chunk.start, self.end)

    @property
    def rows(self) -> Any:
        return torch.full((self.chunk.count,), self.chunk.row, dtype=torch.long)

    @property
    def columns(self) -> Any:
        return torch.arange(self.chunk.start, self.end)

    @property
    def positions(self) -> Any:
        """Those of the prompt, then those of an answer that is taken in again."""
        prompt = self.sequence.prompt
        inside = prompt.positions[:, self.chunk.start : self.end]
        behind = torch.arange(self.chunk.start + inside.shape[1], self.end) + prompt.delta
        return torch.cat([inside, behind.expand(3, -1)], dim=1)

    def show(self, hidden: Any) -> None:
        """Put the features of the pictures where their placeholders were embedded in the line."""
        prompt = self.sequence.prompt
        if not prompt.pictures:
            return
        before = int(prompt.is_image[: self.chunk.start].sum())
        here = prompt.is_image[self.chunk.start : self.end].nonzero()[:, 0]
        if len(here):
            features = self.sequence.features[before : before + len(here)]
            hidden[self.chunk.offset + here.to(hidden.device)] = features.to(hidden.dtype)


def _sizes(most: int, step: int) -> list[int]:
    """`step`, twice that, four times that, … and `most` itself."""
    sizes = []
    while step < most:
        sizes.append(step)
        step *= 2
    return [*sizes, most]
