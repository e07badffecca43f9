"""Attention over one line of tokens: those of all running requests and the prompt chunks of this step.

Registered with transformers under NAME, it is called by the model's own layers in place of their usual attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["NAME", "Chunk", "Line", "install"]

NAME = "glm_slots"


@dataclass(frozen=True)
class Chunk:
    """Consecutive prompt tokens of one request: `count` of them from `start` in its row, from `offset` in the line."""

    row: int
    start: int
    count: int
    offset: int
    mask: Any = None  # bool (count, start + count), None where the chunk begins its row


@dataclass(frozen=True)
class Line:
    """How the tokens of one step lie: first one token of each of the rows 0 to `decoding` - 1, then the chunks.

    Attention of the decoding rows reads `columns` of each, as `mask`, bool (decoding, 1, 1, columns), allows.
    """

    decoding: int
    columns: int
    mask: Any
    chunks: tuple[Chunk, ...] = ()


def install(model: Any) -> None:
    """Make the text layers of a Glm4vForConditionalGeneration attend by lines; the vision tower stays as it is."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation({"text_config": NAME})


def attend(
    _module: Any, query: Any, keys: Any, values: Any, _mask: Any, *, line: Line, scaling: float, **_: Any
) -> tuple[Any, None]:
    """Answer (1, tokens, heads * head_size) for `query` (1, heads, tokens, head_size) over the slabs of one layer."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    _, heads, tokens, size = query.shape
    groups = keys.shape[1]
    parts = []
    if line.decoding:
        # The heads that share keys stand where other tokens would: nothing has to be repeated for them.
        rows, columns = line.decoding, line.columns
        one = query[0, :, :rows].reshape(groups, heads // groups, rows, size).permute(2, 0, 1, 3)
        said = sdpa(one, keys[:rows, :, :columns], values[:rows, :, :columns], attn_mask=line.mask, scale=scaling)
        parts.append(said.reshape(rows, heads * size))
    for chunk in line.chunks:
        end = chunk.start + chunk.count
        said = sdpa(
            query[:, :, chunk.offset : chunk.offset + chunk.count],
            keys[chunk.row : chunk.row + 1, :, :end],
            values[chunk.row : chunk.row + 1, :, :end],
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            scale=scaling,
            enable_gqa=True,
        )
        parts.append(said[0].transpose(0, 1).reshape(chunk.count, heads * size))
    line_of_all = parts[0] if len(parts) == 1 else torch.cat(parts)
    return line_of_all.view(1, tokens, heads * size), None
