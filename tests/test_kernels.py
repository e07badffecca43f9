"""The faster ways to compute a layer say what the layer says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.glm4v.modeling_glm4v import Glm4vRMSNorm

from service.engine import kernels


class Layers(nn.Module):
    """One of each kind that is replaced, and an input for each."""

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

    def answers(self, count: int) -> dict[str, torch.Tensor]:
        """What each layer says to `count` tokens or patches."""
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


@pytest.mark.parametrize("mkl_holds_back", [True, False])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_every_layer_says_the_same(monkeypatch: pytest.MonkeyPatch, count: int, mkl_holds_back: bool) -> None:
    """For one token and for many, and whichever processor this is."""
    monkeypatch.setattr(kernels, "_mkl_holds_back", lambda _: mkl_holds_back)
    layers = Layers().eval()
    before = layers.answers(count)
    kernels.install(layers)
    for name, said in layers.answers(count).items():
        torch.testing.assert_close(said, before[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_convolution_over_more_than_a_patch_stays_one() -> None:
    """Only where it sees each patch by itself is it a linear layer."""
    layers = Layers().eval()
    kernels.install(layers)
    with torch.inference_mode():
        assert layers.square(torch.randn(1, 16, 6, 6)).shape == (1, 32, 3, 3)


def test_a_large_model_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond SMALL its weights stay where they are."""
    monkeypatch.setattr(kernels, "_mkl_holds_back", lambda _: True)
    monkeypatch.setattr(kernels, "SMALL", 1000)
    layers = Layers().eval()
    where = layers.plain.weight.data_ptr()
    kernels.install(layers)
    assert layers.plain.weight.data_ptr() == where
    assert not hasattr(layers.plain, "packed")
