"""Make a checkpoint of the true layout that is small enough for a test, a demo, a laptop.

Every file that Hugging Face writes for GLM-4.6V-Flash is there and is loaded by the same code; only the numbers are
small, and drawn at random. Such a model answers readable words without sense, the same ones to the same question, and
another seed answers with other words: enough to tell two releases apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["SIZES", "Size", "make"]

# Ids follow the words, in the order of the real vocabulary. The plain ones survive skip_special_tokens there too.
SPECIAL = """
<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|>
<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|begin_of_box|> <|end_of_box|>
<|image|> <|video|>
"""
PLAIN = "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> /nothink"
END_OF_TURN = ("<|endoftext|>", "<|user|>", "<|observation|>")

CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- macro said(content) -%}
  {%- if content is string -%}{{ content }}
  {%- else -%}
    {%- for part in content or [] -%}
      {%- if part.type == 'image' -%}<|begin_of_image|><|image|><|end_of_image|>
      {%- elif part.type == 'text' -%}{{ part.text }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}{{ '<|system|>\\n' + said(message.content) }}
  {%- elif message.role == 'user' -%}
    {{- '<|user|>\\n' + said(message.content) -}}
    {%- if enable_thinking is defined and not enable_thinking -%}/nothink{%- endif -%}
  {%- elif message.role == 'assistant' -%}
    {{- '<|assistant|>\\n<think></think>\\n' + said(message.content).split('</think>')[-1].strip() -}}
  {%- elif message.role == 'tool' -%}
    {{- '<|observation|>\\n<tool_response>\\n' + said(message.content) + '\\n</tool_response>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>' -}}
  {%- if enable_thinking is defined and not enable_thinking -%}{{ '\\n<think></think>\\n' }}{%- endif -%}
{%- endif -%}
"""

WORDS = """
a able about above across after again air all almost along also always am among an and animal another answer any apple
are around as ask at away back be beach bear because been before began behind below best better between big bird black
blue boat body book both bottom box boy bread bring brown build but by call came can car cat change child city clean
clear close cloud cold color come could country cup dark day deep did different do dog door down draw dream drive each
early earth east easy eat eight end even evening every example eye face fall family far fast father few field find fire
first fish five flower fly follow food for forest found four friend from full game garden gave get girl give glass go
gold good grass great green grow half hand happy hard has have he head hear heart heavy help her here high hill him his
hold home hope horse hot house how hundred i ice idea if image in into is island it its jump just keep kind king know
lake land large last late leaf learn leave left less let letter life light like line lion list little live long look
made make man many map mark may me mean milk mind minute moon more morning most mother mountain mouse move much music
must my name near need never new next night nine no north not now number ocean of off often old on once one only open
or orange other our out over own page paint paper part path people picture place plant play point power purple question
quick quiet rain read ready red rest right river road rock room round run said same sand saw say school sea second see
seed seven shape she ship short show side silver simple sing sister sit six sky sleep slow small snow so some song soon
sound south square star start stay step stone stop story street strong such summer sun table take talk tall tell ten
than that the their them then there these they thing think this those thought three through time to today together told
too top town tree triangle true try turn two under until up us use very voice wait walk wall want warm was watch water
way we week well went were west what wheel when where which white who why wide will wind window winter wish with wood
word work world would write year yellow yes yet you young your
"""
CHINESE = "你好 世界 图片 什么 颜色 红色 蓝色 绿色 黄色 圆形 方形 回答 问题 模型 请问 谢谢"


@dataclass(frozen=True)
class Size:
    """The numbers of one model; `rotary` splits half a text head's rotated part into time, height and width."""

    hidden: int
    layers: int
    inner: int
    heads: int
    rotary: tuple[int, int, int]
    vision_hidden: int
    vision_layers: int


SIZES = {
    "tiny": Size(64, 2, 192, 4, (1, 1, 2), 32, 2),  # 0.36 M parameters
    "small": Size(256, 4, 768, 4, (4, 6, 6), 64, 2),  # 4 M
    "large": Size(1024, 26, 5120, 8, (8, 12, 12), 512, 8),  # 0.5 G: a load that takes time and memory
}


def make(
    out: Path, *, seed: int, size: str = "tiny", dtype: Literal["bfloat16", "float32"] = "bfloat16"
) -> dict[str, int]:
    """Write the checkpoint with the weights of `seed` to the directory `out`, made if need be.

    The same arguments give the same bytes. Returns the number of `parameters` and of `bytes` of all files.
    """
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(out)
    parameters = _write_model(out, vocabulary, SIZES[size], seed, dtype)
    _write_preprocessors(out)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return {"parameters": parameters, "bytes": sum(file.stat().st_size for file in out.iterdir())}


def _corpus() -> Iterator[str]:
    """Yield every word often enough to become one token, after a space and alone."""
    for word in WORDS.split():
        yield from [f" {word}"] * 8 + [word, word.capitalize()]
    yield from CHINESE.split() * 4


def _write_tokenizer(out: Path) -> dict[str, int]:
    """Train a byte-level BPE and write it; the answer maps every token to its id."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1500, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL.split()])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN.split()])
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
            "additional_special_tokens": SPECIAL.split(),
        },
    )
    return dict(tokenizer.get_vocab())


def _write_model(out: Path, vocabulary: dict[str, int], size: Size, seed: int, dtype: str) -> int:
    import torch
    from transformers import GenerationConfig, Glm4vConfig, Glm4vForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    rows = -(-len(vocabulary) // 64) * 64
    end = [vocabulary[token] for token in END_OF_TURN]
    config = Glm4vConfig(
        text_config={
            "vocab_size": rows,
            "hidden_size": size.hidden,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": 2,
            "max_position_embeddings": 131_072,
            "attention_bias": True,
            "rms_norm_eps": 1e-5,
            "eos_token_id": end,
            "pad_token_id": end[0],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500_000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": list(size.rotary),
            },
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 3 * size.vision_hidden,
            "num_heads": 2,
            "image_size": 336,
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
    with torch.device("meta"):
        model = Glm4vForConditionalGeneration(config)
    model = model.to(getattr(torch, dtype)).to_empty(device="cpu")
    words = {f"\u0120{word}" for word in WORDS.split()}  # as the byte-level alphabet spells a space before a word
    answers = torch.tensor([identity for token, identity in vocabulary.items() if token in words])
    _draw(model, answers, torch.Generator().manual_seed(seed))
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.8, top_p=0.6, top_k=2, eos_token_id=end, pad_token_id=end[0]
    )
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written 0600, and the service has a user of its own
    return sum(parameter.numel() for parameter in model.parameters())


def _draw(model: Any, answers: Any, generator: Any) -> None:
    """Fill the parameters so that signals keep their size and the logits of `answers` stand far apart.

    The other rows of the head are zero. A logit of nought is never the greatest of hundreds, so no answer ends by
    accident, and none is half a character.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "lm_head.weight":
                noise *= 4.0 * parameter.shape[1] ** -0.5
                kept = torch.zeros_like(noise)
                kept[answers] = noise[answers]
                noise = kept
            elif parameter.ndim == 1:
                noise = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            elif "embed_tokens" not in name:
                noise *= 1.6 * parameter[0].numel() ** -0.5
            parameter.copy_(noise)


def _write_preprocessors(out: Path) -> None:
    shared = {
        "processor_class": "Glm46VProcessor",
        "do_rescale": True,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    for name, kind, longest in (("", "Image", 9_633_792), ("video_", "Video", 47_040_000)):
        document = {
            **shared,
            "size": {"shortest_edge": 12_544, "longest_edge": longest},
            f"{kind.lower()}_processor_type": f"Glm46V{kind}Processor",
        }
        _write_json(out / f"{name}preprocessor_config.json", document)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Run `python -m service.tiny`."""
    parser = argparse.ArgumentParser(
        prog="python -m service.tiny",
        description="Make a small random checkpoint of GLM-4.6V-Flash's layout. It answers words without sense.",
        epilog="""examples:
  python -m service.tiny /tmp/one --seed 1       one release
  python -m service.tiny /tmp/two --seed 2       another: it answers the same question differently
  glmctl release add /tmp/one --version 1.0.0    import it

sizes: """
        + "; ".join(f"{name}: {size.layers} layers of {size.hidden}" for name, size in SIZES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the directory to write to; made if need be")
    parser.add_argument("--seed", type=int, default=0, help="which random weights (default: 0)")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="how many of them (default: tiny)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="how they are stored (default: bfloat16)"
    )
    asked = parser.parse_args(argv)
    began = time.perf_counter()
    made = make(asked.out, seed=asked.seed, size=asked.size, dtype=asked.dtype)
    print(  # noqa: T201
        f"{asked.out}: {made['parameters'] / 1e6:.2f} M parameters, {made['bytes'] / 1e6:.1f} MB, "
        f"{time.perf_counter() - began:.1f} s"
    )


if __name__ == "__main__":
    main()
