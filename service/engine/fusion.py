"""The small operations between the matrix products of a text layer, compiled to one kernel each.

On a GPU each of these operations reads and writes a few kilobytes, so that a step of one row spends more time in their
kernels' starts than in their work. `install` gives the layers of the text model a forward pass in which a norm, the
residual sum before it and the next norm are one kernel, and so are the rotation of queries and keys, and the gate of
the MLP. Queries, keys and values are one product. Results are equal up to floating-point rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.engine.attention import attend

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

__all__ = ["install"]

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def install(model: Glm4vForConditionalGeneration, compiled: Compile | None = None) -> None:
    """Replace the forward methods of the text layers; `compiled` compiles a function, by default torch.compile."""
    operations = _Operations(compiled or torch.compile)
    layers: list[Any] = list(model.model.language_model.layers)  # Any: `forward` is assigned
    for layer in layers:
        layer.operations = layer.self_attn.operations = layer.mlp.operations = operations
        layer.forward = MethodType(_layer, layer)
        if not hasattr(layer.self_attn, "joined"):  # captured graphs have the addresses of an earlier call's
            layer.self_attn.joined = _join(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        layer.self_attn.forward = MethodType(_attention, layer.self_attn)
        if model.config.text_config.hidden_act == "silu":
            layer.mlp.forward = MethodType(_mlp, layer.mlp)


def _join(*projections: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one product that gives the outputs of all, and make theirs views of it.

    A copy to the weights of a projection, such as one of another release, is one to the product's.
    """
    joined = []
    for name in ("weight", "bias"):
        parts = [getattr(projection, name) for projection in projections]
        whole = torch.cat([part.detach() for part in parts])
        for projection, view in zip(projections, torch.split(whole, [len(part) for part in parts]), strict=True):
            setattr(projection, name, nn.Parameter(view, requires_grad=False))
        joined.append(whole)
    if whole.is_cuda:
        torch.cuda.empty_cache()  # the memory of the parts: a later layer's product does not fit into it
    return joined[0], joined[1]


class _Operations:
    """The compiled functions."""

    def __init__(self, compiled: Compile) -> None:
        self.norm = compiled(_norm)
        self.add_norm_norm = compiled(_add_norm_norm)
        self.norm_add = compiled(_norm_add)
        self.rotate = compiled(_rotate)
        self.gate = compiled(_gate)


def _layer(layer: Any, hidden: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **options: Any) -> Tensor:
    """Return the layer's output (1, tokens, hidden)."""
    operations, epsilon = layer.operations, layer.input_layernorm.variance_epsilon
    attended, _ = layer.self_attn(
        operations.norm(hidden, layer.input_layernorm.weight, epsilon), position_embeddings, **options
    )
    hidden, normed = operations.add_norm_norm(
        hidden, attended, layer.post_self_attn_layernorm.weight, layer.post_attention_layernorm.weight, epsilon
    )
    output: Tensor = operations.norm_add(hidden, layer.mlp(normed), layer.post_mlp_layernorm.weight, epsilon)
    return output


def _attention(
    module: Any,
    hidden: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    *,
    cache: Any,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the output of attention (1, tokens, hidden) over `cache`."""
    heads = (*hidden.shape[:2], -1, module.head_dim)
    count = module.num_key_value_heads
    query, keys, values = torch.split(
        functional.linear(hidden, *module.joined).view(heads), [module.num_heads, count, count], dim=2
    )
    query, keys = module.operations.rotate(query, keys, *position_embeddings)
    keys, values = cache.update(keys, values.transpose(1, 2), module.layer_idx)
    output, _ = attend(module, query, keys, values, attention_mask, scaling=module.scaling, **options)
    return module.o_proj(output), None


def _mlp(module: Any, hidden: Tensor) -> Tensor:
    output: Tensor = module.down_proj(module.operations.gate(module.gate_up_proj(hidden)))
    return output


# compiled; each is one kernel, or two where a later part needs a sum over the whole of an earlier one


def _norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    single = hidden.float()
    return weight * (single * torch.rsqrt(single.square().mean(-1, keepdim=True) + epsilon)).to(hidden.dtype)


def _add_norm_norm(
    residual: Tensor, hidden: Tensor, weight: Tensor, next_weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return the residual with `hidden` normalised and added, and the norm of that."""
    residual = residual + _norm(hidden, weight, epsilon)
    return residual, _norm(residual, next_weight, epsilon)


def _norm_add(residual: Tensor, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return residual + _norm(hidden, weight, epsilon)


def _rotate(query: Tensor, keys: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """Return query and keys, given as (1, tokens, heads, head_size), rotated, as (1, heads, tokens, head_size)."""
    size = cosine.shape[-1]  # of the part that is rotated
    cosine, sine = cosine[:, :, None], sine[:, :, None]

    def rotated(states: Tensor) -> Tensor:
        turned, rest = states[..., :size], states[..., size:]
        half = torch.stack((-turned[..., 1::2], turned[..., 0::2]), dim=-1).flatten(-2)
        return torch.cat([turned * cosine + half * sine, rest], dim=-1).transpose(1, 2)

    return rotated(query), rotated(keys)


def _gate(both: Tensor) -> Tensor:
    """Return the upper half of `both` times the activation of the lower half."""
    gate, up = both.chunk(2, dim=-1)
    return up * functional.silu(gate)
