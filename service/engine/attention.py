"""Attention of the model's text layers over the tokens of one step, as the layout of the step defines it.

Registered with transformers under NAME; the text layers call it in place of their default attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

__all__ = ["NAME", "Chunk", "Layout", "SlotLayout", "attend", "install"]

NAME = "glm_step"


class Layout(Protocol):
    """Which keys the tokens of a step attend to; made by the cache that holds the keys."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Return (1, tokens, heads * head_size) for `query` (1, heads, tokens, head_size) and a layer of the cache."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive prompt tokens of one request: `count` tokens from column `start` of its cache row.

    `offset` is the index of the first of them among the tokens of the step.
    """

    row: int
    start: int
    count: int
    offset: int
    mask: Tensor | None = None  # bool (count, start + count); None if `start` is 0: causal attention is enough


@dataclass(frozen=True)
class SlotLayout:
    """Order of the tokens of one step: one token of each of the rows 0 to `decoding` - 1, then the chunks.

    Decoding rows attend to their first `columns` columns under `mask`, bool (decoding, 1, 1, columns); None if no row
    decodes.
    """

    decoding: int
    columns: int
    mask: Tensor | None
    chunks: tuple[Chunk, ...] = ()

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """See Layout; `keys` and `values` are the slabs of one layer, (rows, kv_heads, columns, head_size)."""
        _, heads, tokens, size = query.shape
        groups = keys.shape[1]
        parts = []
        if self.decoding:
            # Query heads that share a key head are laid along the token axis, so keys need not be repeated.
            rows, columns = self.decoding, self.columns
            grouped = query[0, :, :rows].reshape(groups, heads // groups, rows, size).permute(2, 0, 1, 3)
            output = sdpa(
                grouped, keys[:rows, :, :columns], values[:rows, :, :columns], attn_mask=self.mask, scale=scaling
            )
            parts.append(output.reshape(rows, heads * size))
        for chunk in self.chunks:
            end = chunk.start + chunk.count
            output = sdpa(
                query[:, :, chunk.offset : chunk.offset + chunk.count],
                keys[chunk.row : chunk.row + 1, :, :end],
                values[chunk.row : chunk.row + 1, :, :end],
                attn_mask=chunk.mask,
                is_causal=chunk.mask is None,
                scale=scaling,
                enable_gqa=True,
            )
            parts.append(output[0].transpose(0, 1).reshape(chunk.count, heads * size))
        outputs = parts[0] if len(parts) == 1 else torch.cat(parts)
        return outputs.view(1, tokens, heads * size)


def install(model: Glm4vForConditionalGeneration) -> None:
    """Switch the text layers to this attention; the vision tower is left unchanged."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation({"text_config": NAME})


def attend(
    _module: nn.Module,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    _mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float,
    **_unused: object,
) -> tuple[Tensor, None]:
    """Attend as `layout` says, with the signature that transformers calls."""
    return layout.attend(query, keys, values, scaling), None
