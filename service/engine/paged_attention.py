"""Attention over a paged KV cache, with torch's flex_attention: no gather, and no shape that depends on a length.

Keys and values of all rows lie in one pool of pages. A mask tells for every row which pages of the pool it attends to;
the kernel reads no others, and for few long rows it divides the pages of a row among the multiprocessors. Compiled, on
CUDA, this is one kernel. Without compilation, as in the tests on the CPU, the whole matrix of scores is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

__all__ = ["Flex", "PagedLayout", "compiled_flex", "mask_of_chunk", "mask_of_rows"]

Flex = Callable[..., Tensor]

_MAX_SHAPES = 64  # one kernel is compiled for each number of rows and each size of chunk; torch's default is 8

_PARTS, _LEAST_PARTS = 128, 16
"""Into so many parts the pages of all rows together, and of each row at least, are divided among the multiprocessors.
The default for 64 rows is 2 on a chip with 132 multiprocessors, so that few of these would read a long row beside short
ones. Each part has a result of its own in memory, for 64 rows of 32 heads 1 MB."""


def compiled_flex() -> Flex:
    """Return flex_attention as kernels, one for each shape, which are compiled at its first use."""
    attend: Flex = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def call(*arguments: Any, **options: Any) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=_MAX_SHAPES):  # noqa: SLF001  # no public name
            return attend(*arguments, **options)

    return call


def mask_of_rows(table: Tensor, lengths: Tensor, pages: int, page: int) -> BlockMask:
    """Return the mask of one query token for each row.

    `table` (rows, pages of a row) has the numbers of the pages in a pool of `pages`, `lengths` (rows,) the tokens of
    each row, at least 1. No page is listed as complete, though only the last of a row is not: with complete pages the
    kernel divides the length of the pool among its parts, without them that of the row.
    """
    places = _places(table, pages)
    numbers = torch.nn.functional.pad(table.to(torch.int32), (0, pages - table.shape[1]))
    return BlockMask.from_kv_blocks(
        ((lengths + page - 1) // page).to(torch.int32)[:, None, None],
        numbers[:, None, None].contiguous(),
        BLOCK_SIZE=(page, page),
        # also says what the lists of pages say: without compilation nothing else is asked
        mask_mod=lambda row, _head, _query, key: places[row, key // page] * page + key % page < lengths[row],
        seq_lengths=(1, pages * page),
        compute_q_blocks=False,
    )


def mask_of_chunk(table: Tensor, rows: Tensor, columns: Tensor, pages: int, page: int) -> BlockMask:
    """Return the mask of prompt tokens of several rows: each attends to its own row up to its own column.

    `rows` and `columns` (tokens,) locate the tokens; their number is a multiple of `page`. Each block of `page` tokens
    visits the pages that any of its tokens sees, and compares positions except where all of its tokens see all.
    """
    places = _places(table, pages)
    starts = places[rows] * page  # (tokens, pages): the column at which each page of the pool begins in the token's row
    blocks = (-1, page, pages)
    seen = (starts <= columns[:, None]).view(blocks).any(1)
    whole = (starts + page - 1 <= columns[:, None]).view(blocks).all(1)
    partial = seen & ~whole
    return BlockMask.from_kv_blocks(
        partial.sum(-1, dtype=torch.int32)[None, None],
        _first(partial)[None, None],
        whole.sum(-1, dtype=torch.int32)[None, None],
        _first(whole)[None, None],
        BLOCK_SIZE=(page, page),
        mask_mod=lambda _batch, _head, query, key: (
            places[rows[query], key // page] * page + key % page <= columns[query]
        ),
        seq_lengths=(len(rows), pages * page),
        compute_q_blocks=False,
    )


@dataclass(frozen=True)
class PagedLayout:
    """Order of the tokens of one step: one token of each of the rows 0, 1, …, then the prompt tokens of a chunk."""

    attention: Flex
    rows: int
    of_rows: BlockMask
    of_chunk: BlockMask | None = None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Return (1, tokens, heads * head_size) for `query` (1, heads, tokens, head_size).

        `keys` and `values` are the pool of one layer, (1, kv_heads, pages * page, head_size).
        """
        options: dict[str, Any] = {"scale": scaling, "enable_gqa": True}
        single = query[:, :, : self.rows].permute(2, 1, 0, 3).contiguous()  # (rows, heads, 1, head_size)
        parts_of_row = {"SPLIT_KV": max(_LEAST_PARTS, _PARTS // self.rows)}
        output = self.attention(single, keys, values, block_mask=self.of_rows, kernel_options=parts_of_row, **options)
        parts = [output.reshape(1, self.rows, -1)]
        if self.of_chunk is not None:
            chunk = query[:, :, self.rows :].contiguous()
            output = self.attention(chunk, keys, values, block_mask=self.of_chunk, **options)
            parts.append(output.transpose(1, 2).flatten(2))
        return torch.cat(parts, dim=1)


def _places(table: Tensor, pages: int) -> Tensor:
    """Return the inverse of a page table: (rows, pages), the place of each page of the pool in each row.

    A page that a row does not have gets a place behind all that it has.
    """
    rows, longest = table.shape
    places = torch.full((rows, pages), longest, dtype=table.dtype, device=table.device)
    return places.scatter_reduce_(1, table, torch.arange(longest, device=table.device).expand(rows, -1), "amin")


def _first(chosen: Tensor) -> Tensor:
    """Return for chosen pages, bool (blocks, pages), their numbers, then zeros: int32 (blocks, pages)."""
    blocks, pages = chosen.shape
    targets = torch.where(chosen, chosen.cumsum(-1) - 1, pages)  # the others are written to a column that is cut off
    numbers = torch.zeros(blocks, pages + 1, dtype=torch.int32, device=chosen.device)
    each = torch.arange(pages, dtype=torch.int32, device=chosen.device).expand(blocks, -1)
    return numbers.scatter_(1, targets, each)[:, :pages].contiguous()
