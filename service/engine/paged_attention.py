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

_PARTS, _LEAST_PARTS = 64, 16
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
    owners, starts = _owners(table, pages, page)
    of_block, columns_of_block = rows.view(-1, page), columns.view(-1, page)
    ends = torch.full((len(of_block), len(table) + 1), -1, dtype=columns.dtype, device=columns.device)
    ends.scatter_reduce_(1, of_block, columns_of_block, "amax")  # the last column that a block sees of each row
    seen = starts <= ends[:, owners]  # (blocks, pages)
    is_single = (of_block == of_block[:, :1]).all(1, keepdim=True)
    is_own = is_single & (owners == of_block[:, :1])
    whole = is_own & (starts + page - 1 <= columns_of_block.amin(1, keepdim=True))
    partial = seen & ~whole
    return BlockMask.from_kv_blocks(
        partial.sum(-1, dtype=torch.int32)[None, None],
        _first(partial)[None, None],
        whole.sum(-1, dtype=torch.int32)[None, None],
        _first(whole)[None, None],
        BLOCK_SIZE=(page, page),
        # Only values of a query or of a key are read. The kernel would keep values of pairs, such as the place of a
        # page in a query's row, in shared memory, for several blocks at a time: 256 of the 227 KiB of a multiprocessor.
        mask_mod=lambda _batch, _head, query, key: (
            (owners[key // page] == rows[query]) & (starts[key // page] + key % page <= columns[query])
        ),
        seq_lengths=(len(rows), pages * page),
        compute_q_blocks=False,
    )


@dataclass(frozen=True)
class PagedLayout:
    """Order of the tokens of one step: one token of each of the rows 0, 1, …, then the prompt tokens of a chunk."""

    attention: Flex
    rows: int
    of_rows: BlockMask | None
    of_chunk: BlockMask | None = None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Return (1, tokens, heads * head_size) for `query` (1, heads, tokens, head_size).

        `keys` and `values` are the pool of one layer, (1, kv_heads, pages * page, head_size).
        """
        options: dict[str, Any] = {"scale": scaling, "enable_gqa": True}
        parts = []
        if self.of_rows is not None:
            # (rows, heads, 1, head_size), with strides that do not depend on the number of tokens: else the same kernel
            # would be compiled for each size of chunk
            single = query[0, :, : self.rows].transpose(0, 1)[:, :, None]
            split = {"SPLIT_KV": max(_LEAST_PARTS, _PARTS // self.rows)}
            output = self.attention(single, keys, values, block_mask=self.of_rows, kernel_options=split, **options)
            parts.append(output.reshape(1, self.rows, -1))
        if self.of_chunk is not None:
            # Not made contiguous: the output has the order of the query in memory, which is that of the tokens.
            output = self.attention(query[:, :, self.rows :], keys, values, block_mask=self.of_chunk, **options)
            parts.append(output.transpose(1, 2).flatten(2))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _places(table: Tensor, pages: int) -> Tensor:
    """Return the inverse of a page table: (rows, pages), the place of each page of the pool in each row.

    A page that a row does not have gets a place behind all that it has.
    """
    rows, longest = table.shape
    places = torch.full((rows, pages), longest, dtype=table.dtype, device=table.device)
    return places.scatter_reduce_(1, table, torch.arange(longest, device=table.device).expand(rows, -1), "amin")


def _owners(table: Tensor, pages: int, page: int) -> tuple[Tensor, Tensor]:
    """Return for each page of the pool the row that has it, and the column at which it begins there.

    The row is one behind the last for pages that no row has. Page 0, which padding is written to, counts as the first
    of row 0 if that has no pages, so that padding, which is in row 0, always attends to something.
    """
    rows, longest = table.shape
    numbers = torch.arange(rows, device=table.device)[:, None].expand(rows, longest)
    columns = torch.arange(0, longest * page, page, device=table.device).expand(rows, longest)
    owners = torch.full((pages,), rows, dtype=table.dtype, device=table.device)
    owners.scatter_(0, table.flatten(), numbers.flatten())
    owners[:1] = torch.where(table[0, :1] == 0, 0, rows)  # several rows name it
    starts = torch.zeros_like(owners).scatter_(0, table.flatten(), columns.flatten())
    starts[:1] = 0
    return owners, starts


def _first(chosen: Tensor) -> Tensor:
    """Return for chosen pages, bool (blocks, pages), their numbers, then zeros: int32 (blocks, pages)."""
    blocks, pages = chosen.shape
    targets = torch.where(chosen, chosen.cumsum(-1) - 1, pages)  # the others are written to a column that is cut off
    numbers = torch.zeros(blocks, pages + 1, dtype=torch.int32, device=chosen.device)
    each = torch.arange(pages, dtype=torch.int32, device=chosen.device).expand(blocks, -1)
    return numbers.scatter_(1, targets, each)[:, :pages].contiguous()
