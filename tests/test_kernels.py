"""The faster implementations of layers give the results of the layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.glm4v.modeling_glm4v import Glm4vRMSNorm

from service.engine import kernels


class Layers(nn.Module):
    """One layer of each kind that is replaced."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain = nn.Linear(96, 40, bias=False)
        self.biased = nn.Linear(96, 40)
        self.norm = Glm4vRMSNorm(96, eps=1e-5)
        self.frames = nn.Conv3d(3, 32, kernel_size=(2, 4, 4), stride=(2, 4, 4))
        self.square = nn.Conv2d(16, 32, kernel_size=2, stride=2)
        nn.init.normal_(self.norm.weight)

    def outputs(self, count: int) -> dict[str, torch.Tensor]:
        """The output of each layer for `count` random tokens or patches."""
        draw = torch.Generator().manual_seed(count)
        inputs = {
            "plain": (1, count, 96),
            "biased": (1, count, 96),
            "norm": (1, count, 96),
            "frames": (count, 3, 2, 4, 4),
            "square": (count, 16, 2, 2),
        }
        with torch.inference_mode():
            return {name: getattr(self, name)(torch.randn(size, generator=draw)) for name, size in inputs.items()}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_every_layer_gives_the_same_result(monkeypatch: pytest.MonkeyPatch, count: int, packed: bool) -> None:
    """Results agree for one token and for many, with packed weights and without."""
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda _: packed)
    layers = Layers().eval()
    before = layers.outputs(count)
    kernels.install(layers)
    for name, output in layers.outputs(count).items():
        torch.testing.assert_close(output, before[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_convolution_over_more_than_one_patch_is_not_replaced() -> None:
    """A convolution is computed as a linear layer only for inputs of its kernel size."""
    layers = Layers().eval()
    kernels.install(layers)
    with torch.inference_mode():
        assert layers.square(torch.randn(1, 16, 6, 6)).shape == (1, 32, 3, 3)


def test_a_large_model_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond MAX_PACKED_BYTES the weights are neither moved nor copied."""
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda _: True)
    monkeypatch.setattr(kernels, "MAX_PACKED_BYTES", 1000)
    layers = Layers().eval()
    address = layers.plain.weight.data_ptr()
    kernels.install(layers)
    assert layers.plain.weight.data_ptr() == address
    assert not hasattr(layers.plain, "packed")
