"""The same layers, computed faster: what torch has for them and a model's own modules do not ask for.

Every replacement keeps its module and its weights; equal up to the rounding of float sums.
"""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["install", "is_made"]

SMALL = 256 << 20
"""Bytes of linear weights up to which they are copied, once for each way to compute with them."""

_pack = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001  # no public call takes dense tensors and packed weights
_compute = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001


def install(model: Any) -> None:
    """Let the layers of a Glm4vForConditionalGeneration take the faster ways that its device has.

    Once more after its weights were replaced: what was made from the old ones is made anew.
    """
    from transformers.models.glm4v.modeling_glm4v import Glm4vRMSNorm

    layers: list[Any] = list(model.modules())
    for layer in layers:
        kind = type(layer)
        if kind is Glm4vRMSNorm:
            layer.forward = MethodType(_norm, layer)
        elif kind in (nn.Conv2d, nn.Conv3d) and layer.stride == layer.kernel_size:
            layer.flat = _flat(layer)
            layer.forward = MethodType(_patches, layer)
    linear: list[Any] = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if _mkl_holds_back(model) and sum(layer.weight.nbytes for layer in linear) <= SMALL:
        for layer in linear:
            layer.packed = _pack(layer.weight.detach(), 16)
            layer.weight = nn.Parameter(layer.weight.t().contiguous().t(), requires_grad=False)
            layer.forward = MethodType(_linear, layer)


def is_made(name: str) -> bool:
    """Whether a parameter of that name was made by `install` and is in no file."""
    return ".flat." in name


def _mkl_holds_back(model: Any) -> bool:
    """MKL, with which torch computes float32, keeps to AVX2 on processors that are not Intel's; oneDNN does not."""
    return bool(
        model.device.type == "cpu"
        and model.dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    )


def _linear(layer: Any, line: Any) -> Any:
    """One token: MKL, on weights that lie column by column. More: oneDNN, on packed ones.

    Beside MKL on the weights as they are stored, over all layers of a model of 4 M parameters, that takes 0.7 of
    the time for 1 token, 0.5 for 16 and 0.43 for 480 (one core of an AMD EPYC with AVX-512).
    """
    if line.numel() == layer.in_features:
        return functional.linear(line, layer.weight, layer.bias)
    return _compute(line, layer.packed, layer.bias, "none", [], "")


def _norm(layer: Any, hidden: Any) -> Any:
    """One call instead of six; to the bit the same on a CPU."""
    return functional.rms_norm(hidden, layer.weight.shape, layer.weight, layer.variance_epsilon)


def _patches(layer: Any, patches: Any) -> Any:
    """A convolution that takes each patch in at once is a linear layer, which on a CPU is seven times as fast."""
    if patches.shape[2:] != layer.kernel_size:
        return layer._conv_forward(patches, layer.weight, layer.bias)  # noqa: SLF001
    seen = layer.flat(patches.flatten(1))
    return seen.view(*seen.shape, *(1 for _ in layer.kernel_size))


def _flat(convolution: Any) -> nn.Linear:
    """The linear layer that a convolution is to a patch of its own size, with the same weights."""
    weight = convolution.weight.flatten(1)
    flat = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    flat.weight, flat.bias = nn.Parameter(weight, requires_grad=False), convolution.bias
    return flat
