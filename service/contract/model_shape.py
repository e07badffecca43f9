"""The sizes of a language model, as far as the memory that it needs depends on them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from service.contract.fields import from_document

__all__ = ["ModelShape"]


@dataclass(frozen=True)
class ModelShape:
    """Sizes by their names in config.json."""

    num_hidden_layers: int
    num_attention_heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 8192

    @classmethod
    def of(cls, config: object) -> ModelShape:
        """Read the sizes from a config.json or its `text_config`; raises ValueError that names the one at fault."""
        text = config.get("text_config", config) if isinstance(config, dict) else config
        shape = from_document(cls, text)
        for field in fields(cls):
            size = getattr(shape, field.name)
            if size is not None and size < 1:
                raise ValueError(f"{field.name} is {size}, not at least 1")
        return shape

    def kv_bytes(self, itemsize: int) -> int:
        """Return the bytes of the keys and values of one token, whose numbers have `itemsize` bytes each."""
        heads = self.num_key_value_heads or self.num_attention_heads
        head = self.head_dim or self.hidden_size // self.num_attention_heads
        return 2 * self.num_hidden_layers * heads * head * itemsize

    def step_bytes(self, rows: int, chunk: int, itemsize: int) -> int:
        """Return the peak of one step: three buffers of the MLP's width, about eight of the hidden size, two of logits.

        The step has one token of each of `rows` requests, and `chunk` tokens of prompts.
        """
        buffers = (rows + chunk) * (3 * self.intermediate_size + 8 * self.hidden_size) * itemsize
        return buffers + 2 * rows * self.vocab_size * 4
