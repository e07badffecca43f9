"""The KV cache: one slab per layer, one row per running request.

Rows rather than blocks: attention reads the rows in use as a view, where blocks would have to be gathered for every
layer of every step (`make bench` prints what that costs). Rows in use are always the first ones, which keeps the view
whole; who leaves is replaced by the last.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from mmap import MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

from service.engine import memory

__all__ = ["Budget", "SlotCache"]

MEMORY_SHARE = {"cuda": 0.85, "cpu": 0.25}
"""Of what is free once the weights are loaded. The rest of a GPU is for activations; on the CPU the cache of the other
slot and the page cache want a share, and pages are only taken when they are written."""


@dataclass(frozen=True)
class Budget:
    """How many requests run at a time, and how long each of them may become, prompt and answer together."""

    rows: int
    columns: int

    @classmethod
    def of(cls, model: Any, *, rows: int, kv_tokens: int, context: int) -> Budget:
        """What `kv_tokens` allow, or with 0 the memory that is free on the model's device now.

        Raises ValueError when not even one row of 256 tokens fits.
        """
        tokens = kv_tokens or int(memory.free(model.device) * MEMORY_SHARE[model.device.type]) // _bytes_per_token(
            model
        )
        rows = max(1, min(rows, tokens // min(context, 256)))
        columns = min(context, tokens // rows)
        if columns < min(context, 256):
            raise ValueError(f"the KV cache would hold {tokens} tokens, too few to serve even one request")
        return cls(rows, columns)


def _bytes_per_token(model: Any) -> int:
    layers, heads, size = _shape(model)
    return int(2 * layers * heads * size * model.dtype.itemsize)


def _shape(model: Any) -> tuple[int, int, int]:
    text = model.config.text_config
    return text.num_hidden_layers, text.num_key_value_heads, text.hidden_size // text.num_attention_heads


class SlotCache:
    """Keys and values of all layers, each of shape (rows, kv_heads, columns, head_size).

    It stands where transformers expects a cache: `update` is called by every attention layer, with the keys and values
    of the tokens of this step in one line. `place` says beforehand where in the slab they belong.
    """

    def __init__(self, model: Any, budget: Budget) -> None:
        layers, heads, size = _shape(model)
        self.budget = budget
        shape = (budget.rows, heads, budget.columns, size)
        self._keys = [_zeros(shape, model) for _ in range(layers)]
        self._values = [_zeros(shape, model) for _ in range(layers)]
        self._rows: Any = None
        self._columns: Any = None

    def place(self, rows: Any, columns: Any) -> None:
        """Name the row and the column of every token of the coming step: long tensors (tokens,)."""
        self._rows, self._columns = rows, columns

    def update(self, keys: Any, values: Any, layer: int, **_: Any) -> tuple[Any, Any]:
        """Write (1, kv_heads, tokens, head_size) of this step; returns the layer's whole slabs."""
        self._keys[layer][self._rows, :, self._columns] = keys[0].transpose(0, 1)
        self._values[layer][self._rows, :, self._columns] = values[0].transpose(0, 1)
        return self._keys[layer], self._values[layer]

    def move(self, source: int, target: int, columns: int) -> None:
        """Copy the first `columns` of one row over another."""
        for slab in (*self._keys, *self._values):
            slab[target, :, :columns] = slab[source, :, :columns]


def _zeros(shape: tuple[int, ...], model: Any) -> Any:
    """Zeros of the model's kind, though what was never written is masked: no weight makes nought of a NaN in memory.

    On the CPU they are pages that the kernel hands out when they are first written. torch.zeros would write them all,
    and take the whole budget at once; numpy's ask for huge pages, of which a request's first tokens clear one in every
    slab for every head (50 ms a row with 8 slabs, measured).
    """
    import torch

    if model.device.type != "cpu":
        return torch.zeros(shape, dtype=model.dtype, device=model.device)
    pages = mmap(-1, math.prod(shape) * model.dtype.itemsize, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that knows no huge pages
        pages.madvise(MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=model.dtype).view(shape)
