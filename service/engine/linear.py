"""Linear layers in float32 on a CPU whose wide registers MKL leaves unused.

torch computes them with MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN, which torch has as well,
uses AVX-512 on all that have it, best with weights that were packed for it.
"""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["install"]

MOST = 1 << 30
"""Bytes of linear weights that are packed at most: they are a second copy, which a small model can afford."""

ALONE = 1
"""Tokens in a step up to which MKL is the faster: oneDNN takes 1.2 to 2 times as long at 1 token, then 0.7 at 2, 0.45
at 4, 0.45 at 16 and 0.43 at 480 (layers of 256 by 1536, one core of an AMD EPYC with AVX-512)."""

_pack = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001  # no public call takes dense tensors and packed weights
_compute = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001


def install(model: Any) -> None:
    """Let the linear layers of a small model use oneDNN where that is the faster way; elsewhere do nothing."""
    layers: list[Any] = [module for module in model.modules() if type(module) is nn.Linear]
    if _pays(model) and sum(layer.weight.nbytes for layer in layers) <= MOST:
        for layer in layers:
            layer.packed = _pack(layer.weight.detach(), 16)
            layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, line: Any) -> Any:
    if line.numel() <= ALONE * layer.in_features:
        return functional.linear(line, layer.weight, layer.bias)
    return _compute(line, layer.packed, layer.bias, "none", [], "")


def _pays(model: Any) -> bool:
    return bool(
        model.device.type == "cpu"
        and model.dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    )
