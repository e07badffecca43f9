"""Quantised checkpoints, which the engine does not run: it computes with plain tensors."""

from __future__ import annotations

__all__ = ["WAY_OUT", "method_of"]

WAY_OUT = (
    "use the checkpoint that it was made from, as published in bfloat16; or load it with transformers where its "
    "quantisation library is installed, call dequantize() on the model, and save_pretrained()"
)

_KEYS = ("quantization_config", "compression_config")


def method_of(config: object) -> str | None:
    """Return the method by which a config.json says that the weights are quantised; None if they are not."""
    if not isinstance(config, dict):
        return None
    parts = (config, config.get("text_config"), config.get("vision_config"))
    for part in (part for part in parts if isinstance(part, dict)):
        for key in _KEYS:
            if found := part.get(key):
                method = found.get("quant_method") if isinstance(found, dict) else None
                return str(method or "an unknown method")[:100]
    return None
