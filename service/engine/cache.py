"""The KV cache: one slab per layer, one row per running request.

Rows instead of blocks: attention reads the rows in use as a view, whereas blocks would have to be gathered in every
layer of every step (`make bench` measures the cost). The view requires that the rows in use are always the first ones;
a freed row is filled with the last one.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from mmap import MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

__all__ = ["Budget", "SlotCache"]

MIN_COLUMNS = 256
"""The shortest useful row, in tokens, unless the model's context is shorter."""


@dataclass(frozen=True)
class Budget:
    """Size of the cache: `rows` requests run at a time, each of at most `columns` tokens (prompt and output)."""

    rows: int
    columns: int

    @classmethod
    def of(cls, tokens: int, *, rows: int, context: int) -> Budget:
        """Return the budget for `tokens` tokens; raises ValueError if not even one row of MIN_COLUMNS tokens fits."""
        shortest = min(context, MIN_COLUMNS)
        rows = max(1, min(rows, tokens // shortest))
        columns = min(context, tokens // rows)
        if columns < shortest:
            raise ValueError(f"the KV cache has room for {tokens} tokens; a single request needs at least {shortest}")
        return cls(rows, columns)


def _kv_shape(model: Glm4vForConditionalGeneration) -> tuple[int, int, int]:
    """Return layers, key/value heads and head size."""
    text = model.config.text_config
    return text.num_hidden_layers, text.num_key_value_heads, text.hidden_size // text.num_attention_heads


class SlotCache:
    """Keys and values of all layers, each of shape (rows, kv_heads, columns, head_size).

    Passed to the model in place of a transformers cache: every attention layer calls `update` with the keys and values
    of all tokens of the step. `place` must be called before the step and names their rows and columns.
    """

    def __init__(self, model: Glm4vForConditionalGeneration, budget: Budget) -> None:
        layers, heads, size = _kv_shape(model)
        self.budget = budget
        shape = (budget.rows, heads, budget.columns, size)
        self._keys = [_zeros(shape, model.dtype, model.device) for _ in range(layers)]
        self._values = [_zeros(shape, model.dtype, model.device) for _ in range(layers)]
        self._rows: Tensor
        self._columns: Tensor

    def place(self, rows: Tensor, columns: Tensor) -> None:
        """Set the row and the column of every token of the coming step; long tensors (tokens,)."""
        self._rows, self._columns = rows, columns

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: object) -> tuple[Tensor, Tensor]:
        """Write the step's keys and values, (1, kv_heads, tokens, head_size); return the layer's whole slabs."""
        self._keys[layer][self._rows, :, self._columns] = keys[0].transpose(0, 1)
        self._values[layer][self._rows, :, self._columns] = values[0].transpose(0, 1)
        return self._keys[layer], self._values[layer]

    def move(self, source: int, target: int, columns: int) -> None:
        """Copy the first `columns` columns of row `source` to row `target`."""
        for slab in (*self._keys, *self._values):
            slab[target, :, :columns] = slab[source, :, :columns]


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
