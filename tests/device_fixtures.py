"""Shared by the tests of memory and strategies: the sizes of GLM-4.6V-Flash."""

from __future__ import annotations

from service.contract.device_memory import Copy
from service.contract.engine_settings import EngineSettings
from service.contract.model_shape import ModelShape

__all__ = ["GB", "NINE_B", "SHAPE"]

GB = 10**9
SHAPE = ModelShape(
    num_hidden_layers=40, num_attention_heads=32, num_key_value_heads=2, hidden_size=4096, intermediate_size=13_696,
    vocab_size=151_552, max_position_embeddings=131_072,
)  # fmt: skip
NINE_B = Copy.of(SHAPE, EngineSettings(), "cuda", weights=int(20.6 * GB), itemsize=2)
