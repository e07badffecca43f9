"""The text layers with their small operations compiled together give what transformers' layers give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import pytest
import torch
from transformers import Glm4vConfig, Glm4vForConditionalGeneration

from service.engine import fusion, kernels
from service.engine.cache import Budget, SlotCache
from service.engine.prompt import Prompt
from service.engine.runner import Runner
from service.engine.sequence import Sequence

LAYERS = 2


def model_of(activation: str = "silu") -> Glm4vForConditionalGeneration:
    """A small model; norms have weights that differ, and half of each head is rotated."""
    torch.manual_seed(0)
    rope = {
        "rope_type": "default",
        "rope_theta": 500_000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 3, 3],
    }
    text = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": 256, "pad_token_id": 0, "attention_bias": True}
    text |= {"rope_parameters": rope, "hidden_act": activation}  # type: ignore[dict-item]
    vision = {"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 128}
    model = Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=vision)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2 if parameter.ndim == 1 else 0.05)
    return model


def sequence_of(row: int, tokens: int) -> Sequence:
    positions = torch.stack([torch.arange(tokens), torch.arange(tokens) // 2, torch.arange(tokens) % 3])
    ids = torch.randint(0, 256, (tokens,), generator=torch.Generator().manual_seed(row))
    prompt = Prompt(ids, positions, 0, torch.zeros(tokens).bool(), (), may_think=False, think_open=False)
    return Sequence(prompt, cast("Any", None), cast("Any", None), 4, row=row)


def logits_of(runner: Runner) -> torch.Tensor:
    """Logits after a step of two chunks, and of the step that decodes after them."""
    sequences = [sequence_of(0, 9), sequence_of(1, 5)]
    first = runner.forward((), [(sequence, sequence.uncomputed) for sequence in sequences])
    for sequence in sequences:
        sequence.cached = sequence.length
        sequence.tokens.append(7)
    return torch.cat([first, runner.forward(sequences, ())])


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@pytest.mark.parametrize(
    "compiled", [plain, pytest.param(lambda function: torch.compile(function), marks=pytest.mark.long)]
)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_fused_layers_give_the_same_logits(compiled: fusion.Compile, activation: str) -> None:
    """Prompts and decoded tokens, rope positions of three dimensions, and each layer by the fused operations."""
    calls: Counter[str] = Counter()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        operation = compiled(function)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            calls[function.__name__] += 1
            return operation(*arguments)

        return call

    model = model_of(activation)
    runner = Runner(model, SlotCache(model, Budget(2, 32)))
    expected = logits_of(runner)
    fusion.install(model, counted)
    torch.testing.assert_close(logits_of(runner), expected, rtol=1e-4, atol=1e-4)
    layers = 2 * LAYERS
    assert calls == {
        name: layers
        for name in ("_norm", "_add_norm_norm", "_norm_add", "_rotate", "_gate")
        if activation == "silu" or name != "_gate"
    }


def test_the_joined_product_has_the_weights_of_its_parts() -> None:
    """Weights that are replaced in place, as on a GPU, are those of the next step; no tensor gets another name."""
    model, other = model_of(), model_of()
    for name, parameter in other.named_parameters():
        if "self_attn" in name:
            parameter.data.mul_(1.5)
    names = list(model.state_dict())
    runner, expected = (Runner(one, SlotCache(one, Budget(2, 32))) for one in (model, other))
    fusion.install(model, plain)
    joined = [layer.self_attn.joined for layer in model.model.language_model.layers]
    fusion.install(model, plain)  # as for another cache; captured graphs have the addresses of the first
    assert all(
        layer.self_attn.joined is one for layer, one in zip(model.model.language_model.layers, joined, strict=True)
    )
    current = model.state_dict()
    assert [name for name in current if not kernels.is_derived(name)] == names
    for name, tensor in other.state_dict().items():
        current[name].copy_(tensor)
    torch.testing.assert_close(logits_of(runner), logits_of(expected), rtol=1e-4, atol=1e-4)
