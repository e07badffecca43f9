"""Copies between host and device that do not make the host wait for the work that the device has still to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Download", "upload"]


def upload(values: Tensor | Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the values as a tensor on the device.

    From memory that is not pinned, CUDA copies only after all work before it is done, and the host waits for that.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type == "cuda" and not tensor.is_cuda and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Download:
    """A copy of a tensor to the host that has begun."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.Event | None = None
        self._host = tensor
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.Event(tensor.device)
            self._event.record()

    def numbers(self) -> list[int]:
        """Return the numbers of a tensor of one dimension; waits until they are there."""
        if self._event:
            self._event.synchronize()
        return list(self._host.tolist())
