"""What a compiled kernel of flex_attention computes, in plain torch: it reads the page lists, not the mask alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention as sdpa


def kernel(
    query: Tensor, keys: Tensor, values: Tensor, *, block_mask: BlockMask, kernel_options: Any = None, **options: Any
) -> Tensor:
    """Attend to all keys of the pages listed as full, and to those of the other listed pages that the mask allows.

    `kernel_options` do not change the result. Eager flex_attention applies the mask to every key, whatever is listed.
    """
    rows = query.shape[0]
    seen = _seen(block_mask, query.shape[2])
    return sdpa(query, keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), attn_mask=seen, **options)


@lru_cache(maxsize=2)  # all layers of a step have the same masks
def _seen(block_mask: BlockMask, queries: int) -> Tensor:
    """Return which keys each query sees, bool (rows, 1, queries, keys)."""
    block, page = block_mask.BLOCK_SIZE
    listed = _listed(block_mask.kv_num_blocks, block_mask.kv_indices)
    full = torch.zeros_like(listed)
    if block_mask.full_kv_num_blocks is not None:
        full = _listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    assert not (listed & full).any(), "a page is listed twice, and would count twice"

    def each(pages: Tensor) -> Tensor:
        return pages.repeat_interleave(block, 2)[:, :, :queries].repeat_interleave(page, 3)

    rows, keys = torch.arange(listed.shape[0]), torch.arange(listed.shape[3] * page)
    allowed = block_mask.mask_mod(
        rows[:, None, None, None], torch.tensor(0), torch.arange(queries)[:, None], keys[None, None, None]
    )
    return each(full) | (each(listed) & allowed)


def _listed(counts: Any, numbers: Any) -> Tensor:
    """Return which pages are among the first `counts` of `numbers`: bool (rows, 1, blocks, pages)."""
    chosen = torch.arange(numbers.shape[-1]) < counts[..., None]
    return torch.zeros(numbers.shape, dtype=torch.int32).scatter_add_(3, numbers.long(), chosen.int()) > 0
