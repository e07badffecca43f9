"""The tensors of a model that runs, and how another release's take their place.

They are read before the model has to stand still: what is left to do then is to assign them (on the CPU, where they
stay views of the files) or to copy them over (on a device).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from service.engine import kernels
from service.model.release import ReleaseError

__all__ = ["State", "put", "require_fit"]

State = Mapping[str, Any]
"""Tensors on the CPU, by the names that the model has for them."""


def require_fit(model: Any, state: State) -> None:
    """Raise ReleaseError unless there is one for each tensor of the model, of its shape and dtype, and no other."""
    own = {name: tensor for name, tensor in model.state_dict().items() if not kernels.is_made(name)}
    if others := sorted(own.keys() ^ state.keys()):
        raise ReleaseError(f"the weights are not of the model that runs: {others[0]} is in one of them only")
    for name, tensor in own.items():
        there = state[name]
        if tensor.shape != there.shape or tensor.dtype != there.dtype:
            raise ReleaseError(
                f"the weights are not of the model that runs: {name} is {_kind(there)} instead of {_kind(tensor)}"
            )


def put(model: Any, state: State) -> None:
    """Let the tensors take the place of the model's own. No step may run meanwhile, and no vision tower."""
    if model.device.type == "cpu":
        _assign(model, state)
    else:
        _copy(model, state)


def _assign(model: Any, state: State) -> None:
    """Nothing is written: what was there are views of another release's files, which others may map too."""
    for name, tensor in state.items():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, own, nn.Parameter(tensor, requires_grad=False) if own in module._parameters else tensor)  # noqa: SLF001
    kernels.install(model)  # packed and flattened copies are made anew


def _copy(model: Any, state: State) -> None:
    """Write into the memory of the model's own tensors: captured graphs hold its addresses.

    Never run on a CUDA device, only on the CPU with memory of the model's own.
    """
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)  # the next step may run in another stream


def _kind(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
