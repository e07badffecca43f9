"""The size of a KV cache, and the one of the CPU: one slab per layer, one row per running request.

Rows instead of pages: attention reads the rows in use as a view, whereas pages would have to be gathered in every layer
of every step (`python -m tests.bench.kv_layout` measures the cost), unless a kernel reads them where they are, as on
CUDA (paged_cache.py). The view requires that the rows in use are always the first ones; a freed row is filled with the
last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from mmap import MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from service.engine.attention import SlotLayout

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

__all__ = ["Budget", "Shape", "SlotCache", "kv_shape", "sizes"]

MIN_COLUMNS = 256
"""The shortest useful row, in tokens, unless the model's context is shorter."""


@dataclass(frozen=True)
class Budget:
    """Size of the cache: `rows` requests run at a time, each of at most `columns` tokens (prompt and output).

    `shared`: tokens of all rows together, if they take them from one pool; 0 if each row has `columns` of its own.
    """

    rows: int
    columns: int
    shared: int = 0

    @property
    def capacity(self) -> int:
        """Tokens of all rows together."""
        return self.shared or self.rows * self.columns

    @classmethod
    def of(cls, tokens: int, *, rows: int, context: int, shared: bool = False) -> Budget:
        """Return the budget for `tokens` tokens; raises ValueError if not even one row of MIN_COLUMNS tokens fits.

        If the tokens are `shared`, one row may have all of them, as far as the model's context goes.
        """
        shortest = min(context, MIN_COLUMNS)
        rows = max(1, min(rows, tokens // shortest))
        columns = min(context, tokens if shared else tokens // rows)
        if columns < shortest:
            raise ValueError(f"the KV cache has room for {tokens} tokens; a single request needs at least {shortest}")
        return cls(rows, columns, tokens if shared else 0)


def kv_shape(model: Glm4vForConditionalGeneration) -> tuple[int, int, int]:
    """Return layers, key/value heads and head size."""
    text = model.config.text_config
    return text.num_hidden_layers, text.num_key_value_heads, text.hidden_size // text.num_attention_heads


class Shape(NamedTuple):
    """What the kernels of a step depend on, so that steps of equal shape can be captured once and replayed.

    `rows` that decode and `chunk` prompt tokens, both with padding, and the number of `columns` that the rows attend
    to, if all attend to as many.
    """

    rows: int
    chunk: int = 0
    columns: int = 0


class SlotCache:
    """Keys and values of all layers, each of shape (rows, kv_heads, columns, head_size).

    Passed to the model in place of a transformers cache: every attention layer calls `update` with the keys and values
    of all tokens of the step. `place` must be called before the step and names their rows and columns. Padding is
    written to `spare_column`: no row attends to it, since the last token of the longest output is never computed.
    """

    least_chunk = 16  # prompt tokens, fewer than which cost about as much

    def __init__(self, model: Glm4vForConditionalGeneration, budget: Budget) -> None:
        layers, heads, size = kv_shape(model)
        self.budget = budget
        self.spare_column = budget.columns - 1
        shape = (budget.rows, heads, budget.columns, size)
        self._keys = [_zeros(shape, model.dtype, model.device) for _ in range(layers)]
        self._values = [_zeros(shape, model.dtype, model.device) for _ in range(layers)]
        self._numbers = torch.arange(budget.columns, device=model.device)
        self._rows: Tensor
        self._columns: Tensor

    # what the scheduler needs

    def occupied(self, max_lengths: Iterable[int]) -> int:
        """Return the tokens reserved for running requests whose `max_length` is given."""
        return sum(max_lengths)

    def fits(self, tokens: int, spare: int = 0) -> bool:  # noqa: ARG002  # as the paged cache's
        """Whether a new row of `tokens` tokens fits: every free row has room for the longest request."""
        return True

    def reserve(self, row: int, tokens: int) -> bool:  # noqa: ARG002
        """Give a row room for its first `tokens` tokens; it has it already."""
        return True

    def release(self, row: int) -> None:
        """Take back the room of a row; nothing to do."""

    def move(self, source: int, target: int, columns: int) -> None:
        """Copy the first `columns` columns of row `source` to row `target`."""
        for slab in (*self._keys, *self._values):
            slab[target, :, :columns] = slab[source, :, :columns]

    # what the runner needs

    def shape(self, rows: int, longest: int, tokens: int) -> Shape:  # noqa: ARG002  # chunks have no fixed shape
        """Return the shape of a step of `rows` decoding rows, of which the longest attends to `longest` columns."""
        columns = sizes(MIN_COLUMNS, self.budget.columns)
        return Shape(
            next(size for size in sizes(1, self.budget.rows) if size >= rows),
            columns=next(size for size in columns if size >= longest),
        )

    def common_shapes(self, tokens: int) -> list[Shape]:  # noqa: ARG002
        """Return the shapes of short decoding rows."""
        return [self.shape(rows, 1, 0) for rows in sizes(1, self.budget.rows)]

    def refresh(self) -> None:
        """Prepare a step; nothing to do."""

    def place(self, rows: Tensor, columns: Tensor) -> None:
        """Set the row and the column of every token of the coming step; long tensors (tokens,)."""
        self._rows, self._columns = rows, columns

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: object) -> tuple[Tensor, Tensor]:
        """Write the step's keys and values, (1, kv_heads, tokens, head_size); return the layer's whole slabs."""
        self._keys[layer][self._rows, :, self._columns] = keys[0].transpose(0, 1)
        self._values[layer][self._rows, :, self._columns] = values[0].transpose(0, 1)
        return self._keys[layer], self._values[layer]

    def layout(self, shape: Shape, rows: Tensor, columns: Tensor) -> SlotLayout:  # noqa: ARG002
        """Return the layout of a step of decoding rows, whose new tokens are in `columns`, (rows,)."""
        ends = torch.where(columns < self.spare_column, columns, 0)  # padding attends to one token
        return SlotLayout(shape.rows, shape.columns, self.visible(ends, shape.columns)[:, None, None])

    def visible(self, ends: Tensor, columns: int) -> Tensor:
        """Return which of the first `columns` columns each token sees, (tokens, columns): those up to its own."""
        return self._numbers[:columns] <= ends[:, None]


def sizes(first: int, last: int) -> list[int]:
    """Return `first` times 1, 2, 4, … below `last`, then `last`."""
    found = []
    while first < last:
        found.append(first)
        first *= 2
    return [*found, last]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: masked columns get weight 0, but 0 times a NaN in uninitialised memory would be NaN.

    On the CPU the pages are anonymous memory that the kernel allocates at the first write. torch.zeros would write all
    of them and so allocate the whole budget at once. Transparent huge pages, which numpy asks for, are disabled: the
    first tokens of a request would clear one huge page per slab and head (50 ms a row with 8 slabs, measured).
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap(-1, math.prod(shape) * dtype.itemsize, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    with suppress(OSError):  # kernel without transparent huge pages
        pages.madvise(MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
