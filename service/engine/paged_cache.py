"""A KV cache in pages, for CUDA: every request has as many pages as its tokens need, out of one pool.

A step's shape depends on its number of rows and of prompt tokens alone, so that each shape is captured once, whatever
the lengths are. One request may use the whole context while others are short.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.engine import compiler
from service.engine.cache import Budget, Shape, SlotCache, kv_shape, sizes
from service.engine.paged_attention import Flex, PagedLayout, compiled_flex, mask_of_chunk, mask_of_rows
from service.engine.pages import PageTable
from service.engine.transfer import upload

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

__all__ = ["PAGE", "PagedCache", "cache_for"]

PAGE = 128
"""Tokens of a page, and of a block of queries: what the kernels of flex_attention are made for."""


class PagedCache:
    """Keys and values of all layers, each of shape (1, kv_heads, tokens, head_size), in pages that rows share.

    See SlotCache for what both do. `page` is the size of a page in tokens. `attention` computes flex_attention; by
    default it is compiled.
    """

    def __init__(
        self,
        model: Glm4vForConditionalGeneration,
        budget: Budget,
        *,
        page: int = PAGE,
        attention: Flex | None = None,
    ) -> None:
        layers, heads, size = kv_shape(model)
        self.budget, self._page = budget, page
        self.least_chunk = page
        self._attention = attention or compiled_flex()
        longest = -(-budget.columns // page)
        self._pages = PageTable(budget.rows, max(longest, budget.capacity // page), page, longest)
        self._pool = self._pages.pages + 1  # with page 0
        self.spare_column = longest * page
        self._table = torch.zeros(self._pages.table.shape, dtype=torch.long, device=model.device)
        shape = (1, heads, self._pool * page, size)
        self._keys = [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(layers)]
        self._values = [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(layers)]
        self._slots: Tensor

    # what the scheduler needs

    def occupied(self, max_lengths: Iterable[int]) -> int:  # noqa: ARG002  # pages are given out as rows grow
        """Return the tokens for which running requests have room."""
        return self._pages.used * self._page

    def fits(self, tokens: int, spare: int = 0) -> bool:
        """Whether a new row of `tokens` tokens fits so that `spare` rows can grow by a page afterwards."""
        return self._pages.fits(tokens, spare)

    def reserve(self, row: int, tokens: int) -> bool:
        """Give a row room for its first `tokens` tokens; return False if too few pages are free."""
        return self._pages.reserve(row, tokens)

    def release(self, row: int) -> None:
        """Take back the room of a row."""
        self._pages.release(row)

    def move(self, source: int, target: int, columns: int) -> None:  # noqa: ARG002  # no page is copied
        """Make row `source` row `target`, which must be released."""
        self._pages.move(source, target)

    # what the runner needs

    def shape(self, rows: int, longest: int, tokens: int) -> Shape:  # noqa: ARG002  # the shape depends on no length
        """Return the shape of a step of `rows` decoding rows and `tokens` prompt tokens.

        With prompt tokens there are as many rows as the cache has, or none, since those without a request cost little
        and every combination would be captured on its own.
        """
        if not tokens:
            return Shape(next(size for size in sizes(1, self.budget.rows) if size >= rows))
        chunk = self._page
        while chunk < tokens:
            chunk *= 2
        return Shape(self.budget.rows if rows else 0, chunk)

    def common_shapes(self, tokens: int) -> list[Shape]:
        """Return all shapes of steps of at most `tokens` prompt tokens, in the order in which to capture them."""
        counts = sizes(self._page, max(self._page, tokens))
        chunks = {self.shape(rows, 1, count) for rows in (0, 1) for count in counts}
        return [
            *sorted(chunks, key=lambda shape: (-shape.rows, shape.chunk)),
            *(Shape(rows) for rows in sizes(1, self.budget.rows)),
        ]

    def refresh(self) -> None:
        """Copy the page table to the device if it changed since the last step."""
        if self._pages.changed:
            self._table.copy_(upload(torch.from_numpy(self._pages.table), self._table.device, torch.long))
            self._pages.changed = False

    def place(self, rows: Tensor, columns: Tensor) -> None:
        """Set the row and the column of every token of the coming step; long tensors (tokens,)."""
        self._slots = self._table[rows, columns // self._page] * self._page + columns % self._page

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: object) -> tuple[Tensor, Tensor]:
        """Write the step's keys and values, (1, kv_heads, tokens, head_size); return the layer's whole pools."""
        self._keys[layer].index_copy_(2, self._slots, keys)
        self._values[layer].index_copy_(2, self._slots, values)
        return self._keys[layer], self._values[layer]

    def layout(self, shape: Shape, rows: Tensor, columns: Tensor) -> PagedLayout:
        """Return the layout of a step whose tokens are in `rows` and `columns`, decoding rows first."""
        columns = torch.where(columns < self.spare_column, columns, 0)  # padding attends to one token
        decoding = shape.rows
        of_rows = of_chunk = None
        if decoding:
            of_rows = mask_of_rows(self._table[:decoding], columns[:decoding] + 1, self._pool, self._page)
        if shape.chunk:
            of_chunk = mask_of_chunk(self._table, rows[decoding:], columns[decoding:], self._pool, self._page)
        return PagedLayout(self._attention, decoding, of_rows, of_chunk)


def cache_for(model: Glm4vForConditionalGeneration, tokens: int, *, rows: int, context: int) -> SlotCache | PagedCache:
    """Return the cache that suits the model's device; see Budget.of for the arguments and what it raises."""
    paged = compiler.works(model.device)
    if paged:
        tokens = _rounded(tokens)
    budget = Budget.of(tokens, rows=rows, context=context, shared=paged)
    return PagedCache(model, budget) if paged else SlotCache(model, budget)


def _rounded(tokens: int) -> int:
    """Return at most 1/32 less than `tokens`: one of 32 sizes between a power of two and the next.

    Kernels are compiled for the size of the pool, and kept on the disk for later starts. The memory that is free at a
    start differs by a few megabytes from that at the start before.
    """
    step = 1 << max(0, tokens.bit_length() - 6)
    return tokens // step * step
