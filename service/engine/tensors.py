"""Replacement of the weights of a loaded model by those of another release of the same architecture.

The new tensors are read in advance; the replacement itself only assigns them (on the CPU, where they remain views of
the files) or copies them (on a device).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from service.engine import kernels
from service.model.release import ReleaseError

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

__all__ = ["Weights", "replace", "require_match"]

Weights = Mapping[str, Tensor]
"""Tensors by their names in the model: on the CPU, or staged on the model's device."""


def require_match(model: Glm4vForConditionalGeneration, weights: Weights) -> None:
    """Raise ReleaseError unless `weights` has exactly the model's tensors, each of the same shape and dtype."""
    current = {name: tensor for name, tensor in model.state_dict().items() if not kernels.is_derived(name)}
    if unmatched := sorted(current.keys() ^ weights.keys()):
        raise ReleaseError(f"the weights do not match the loaded model: only one of them has {unmatched[0]}")
    for name, tensor in current.items():
        new = weights[name]
        if tensor.shape != new.shape or tensor.dtype != new.dtype:
            raise ReleaseError(
                f"the weights do not match the loaded model: {name} is {_describe(new)} instead of {_describe(tensor)}"
            )


def replace(model: Glm4vForConditionalGeneration, weights: Weights) -> None:
    """Replace the model's tensors. No step and no image encoding may run meanwhile."""
    if model.device.type == "cpu":
        _assign(model, weights)
    else:
        _copy(model, weights)


def _assign(model: Glm4vForConditionalGeneration, weights: Weights) -> None:
    """Assign the tensors; the old ones are not written, since they map a file that other processes map too."""
    for name, tensor in weights.items():
        path, _, attribute = name.rpartition(".")
        module: nn.Module = model.get_submodule(path)
        is_parameter = attribute in module._parameters  # noqa: SLF001
        setattr(module, attribute, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
    kernels.install(model)  # recompute packed and flattened copies


def _copy(model: Glm4vForConditionalGeneration, weights: Weights) -> None:
    """Copy into the memory of the model's tensors, whose addresses the captured graphs hold."""
    current = model.state_dict()
    with torch.no_grad():
        for name, tensor in weights.items():
            current[name].copy_(tensor, non_blocking=True)  # one after the other, without a pause between them
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)  # the next step may run in another stream


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
