"""The files around the weights of a GLM-4.6V-Flash checkpoint, in Hugging Face's format, for small models.

Tokens, configuration, preprocessors and chat template are those of the real model; the caller chooses the sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Size",
    "config",
    "stop_token_ids",
    "write_chat_template",
    "write_preprocessors",
    "write_tokenizer",
    "write_weights",
]

# Ids follow those of the words, in the order of the real vocabulary. skip_special_tokens keeps the second kind.
SPECIAL_TOKENS = """
<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|>
<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|begin_of_box|> <|end_of_box|>
<|image|> <|video|>
"""
NON_SPECIAL_TOKENS = """
<think> </think> <tool_call> </tool_call> <tool_response> </tool_response>
<arg_key> </arg_key> <arg_value> </arg_value> /nothink
"""
END_OF_TURN = ("<|endoftext|>", "<|user|>", "<|observation|>")
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


@dataclass(frozen=True)
class Size:
    """The sizes of a model; `mrope_section` splits the rotary half of a text head into time, height and width."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    mrope_section: tuple[int, int, int]
    vision_hidden: int
    vision_layers: int
    rope_theta: float = 500_000.0
    image_size: int = 336  # pixels; edge of the learned position embedding


def write_tokenizer(out: Path, corpus: Iterable[str], *, tokens: int) -> dict[str, int]:
    """Train and write a byte-level BPE tokenizer of at most `tokens` tokens, plus control tokens.

    Only what occurs twice in the corpus is merged into a token. Returns the id of every token.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=tokens, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS.split()])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in NON_SPECIAL_TOKENS.split()])
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "Glm46VProcessor",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 128_000,
            "additional_special_tokens": SPECIAL_TOKENS.split(),
        },
    )
    return dict(tokenizer.get_vocab())


def stop_token_ids(vocabulary: dict[str, int]) -> dict[str, Any]:
    """Return `eos_token_id` and `pad_token_id` for a configuration."""
    ids = [vocabulary[token] for token in END_OF_TURN]
    return {"eos_token_id": ids, "pad_token_id": ids[0]}


def config(vocabulary: dict[str, int], size: Size) -> Any:
    """Return the Glm4vConfig of a model of that size."""
    from transformers import Glm4vConfig

    return Glm4vConfig(
        text_config={
            "vocab_size": -(-len(vocabulary) // 64) * 64,
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": 2,
            "max_position_embeddings": 131_072,
            "attention_bias": True,
            "rms_norm_eps": 1e-5,
            **stop_token_ids(vocabulary),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": size.rope_theta,
                "partial_rotary_factor": 0.5,
                "mrope_section": list(size.mrope_section),
            },
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 3 * size.vision_hidden,
            "num_heads": 2,
            "image_size": size.image_size,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": size.hidden,
            "rms_norm_eps": 1e-5,
        },
        image_token_id=vocabulary["<|image|>"],
        video_token_id=vocabulary["<|video|>"],
        image_start_token_id=vocabulary["<|begin_of_image|>"],
        image_end_token_id=vocabulary["<|end_of_image|>"],
        video_start_token_id=vocabulary["<|begin_of_video|>"],
        video_end_token_id=vocabulary["<|end_of_video|>"],
        tie_word_embeddings=False,
    )


def write_weights(out: Path, model: Any) -> None:
    """Write config.json, generation_config.json and the weights."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # save_pretrained writes 0600, which the service's user cannot read


def write_preprocessors(out: Path, *, min_pixels: int = 12_544, max_pixels: int = 9_633_792) -> None:
    """Write the preprocessor configurations; the limits are pixels of an image's two frames together."""
    shared = {
        "processor_class": "Glm46VProcessor",
        "do_rescale": True,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    for prefix, kind, limit in (("", "Image", max_pixels), ("video_", "Video", 47_040_000)):
        document = {
            **shared,
            "size": {"shortest_edge": min_pixels, "longest_edge": limit},
            f"{kind.lower()}_processor_type": f"Glm46V{kind}Processor",
        }
        _write_json(out / f"{prefix}preprocessor_config.json", document)


def write_chat_template(out: Path) -> None:
    """Write the chat template: messages, images, reasoning, tools and their results."""
    (out / TEMPLATE.name).write_bytes(TEMPLATE.read_bytes())


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
