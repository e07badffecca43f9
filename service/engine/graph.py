"""A computation of fixed shapes that is launched as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from service.engine.transfer import upload

__all__ = ["Graph"]


class Graph:
    """A function of tensors. On CUDA it is captured once and replayed without Python; elsewhere it is called.

    `inputs` are those of the first call; all later ones must have the same shapes. The function must give the same
    result, and have the same effects, when it is called again with the same inputs: it is called before the capture,
    which writes to the cache of running requests. `beside`: a graph whose memory for results and intermediates this one
    uses too, so that the result is overwritten by the next replay of either.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        device: torch.device,
        *,
        beside: Graph | None = None,
    ) -> None:
        self._function, self._device = function, device
        # A pool of memory is gone with the last of its graphs, so that one must exist for as long as it is named.
        self.memory: Any = beside and beside.memory
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._capture(inputs)

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(tensor.to(self._device, copy=True) for tensor in inputs)
        for _ in range(2):  # compiles kernels and allocates workspaces, which a capture must not do
            self._function(*self._inputs)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the vision encoder may allocate memory in another thread meanwhile
        with torch.cuda.graph(self._graph, pool=self.memory, capture_error_mode="thread_local"):
            self._result = self._function(*self._inputs)
        self.memory = self._graph.pool()

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the function's result for `inputs`, which may be on the CPU."""
        if self._graph is None:
            return self._function(*(tensor.to(self._device) for tensor in inputs))
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(upload(tensor, self._device, own.dtype), non_blocking=True)
        self._graph.replay()
        return self._result
