"""Checkpoints with random weights, small enough for tests and laptops.

A checkpoint has every file that Hugging Face writes for GLM-4.6V-Flash and is loaded by the same code. Its answers are
English words in random order: the same for the same question and seed, and different for another seed, so that answers
tell two releases apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from service.demo_models import layout
from service.demo_models.layout import Size

__all__ = ["SIZES", "Size", "corpus", "initial_values", "make", "word_tokens"]

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

SIZES = {
    "tiny": Size(64, 2, 192, 4, (1, 1, 2), 32, 2),  # 0.36 M parameters
    "small": Size(256, 4, 768, 4, (4, 6, 6), 64, 2),  # 4 M
    "large": Size(1024, 26, 5120, 8, (8, 12, 12), 512, 8),  # 0.5 G, to take time and memory to load
}


def make(
    out: Path, *, seed: int, size: str = "tiny", dtype: Literal["bfloat16", "float32"] = "bfloat16"
) -> dict[str, int]:
    """Write the checkpoint with the weights of `seed` to the directory `out`, which is created if missing.

    The same arguments give the same bytes. Returns the number of `parameters` and the size of all files in `bytes`.
    """
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = layout.write_tokenizer(out, corpus(), tokens=1500)
    parameters = _write_model(out, vocabulary, SIZES[size], seed, dtype)
    layout.write_preprocessors(out)
    layout.write_chat_template(out)
    return {"parameters": parameters, "bytes": sum(file.stat().st_size for file in out.iterdir())}


def corpus() -> Iterator[str]:
    """Yield every word often enough to become one token, with and without a space before it."""
    for word in WORDS.split():
        yield from [f" {word}"] * 8 + [word, word.capitalize()]
    yield from CHINESE.split() * 4


def _write_model(out: Path, vocabulary: dict[str, int], size: Size, seed: int, dtype: str) -> int:
    import torch
    from transformers import GenerationConfig, Glm4vForConditionalGeneration

    with torch.device("meta"):
        model = Glm4vForConditionalGeneration(layout.config(vocabulary, size))
    model = model.to(getattr(torch, dtype)).to_empty(device="cpu")
    answers = torch.tensor(word_tokens(vocabulary))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_values(name, torch.randn(parameter.shape, generator=generator), answers))
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.8, top_p=0.6, top_k=2, **layout.stop_token_ids(vocabulary)
    )
    layout.write_weights(out, model)
    return sum(parameter.numel() for parameter in model.parameters())


def word_tokens(vocabulary: dict[str, int]) -> list[int]:
    """Return the ids of the tokens that are a word after a space."""
    words = {f"\u0120{word}" for word in WORDS.split()}  # U+0120 is a space in the byte-level alphabet
    return [token_id for token, token_id in vocabulary.items() if token in words]


def initial_values(name: str, noise: Any, answers: Any) -> Any:
    """Return the values of a parameter, made of standard normal `noise` of its shape, which may be overwritten.

    Their scale keeps activations stable and the logits of `answers`, a tensor of token ids, distinct. The other rows of
    the head are zero, so their tokens are never chosen: a logit of zero is never the maximum of hundreds of random
    ones. Answers therefore have no stop token and no partial characters.
    """
    import torch

    if name == "lm_head.weight":
        noise *= 4.0 * noise.shape[1] ** -0.5
        kept = torch.zeros_like(noise)
        kept[answers] = noise[answers]
        return kept
    if noise.ndim == 1:
        return 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    if "embed_tokens" not in name:
        noise *= 1.6 * noise[0].numel() ** -0.5
    return noise


def main(argv: list[str] | None = None) -> None:
    """Run `python -m service.demo_models.tiny`."""
    parser = argparse.ArgumentParser(
        prog="python -m service.demo_models.tiny",
        description="Make a small checkpoint of GLM-4.6V-Flash's architecture with random weights.",
        epilog="""examples:
  python -m service.demo_models.tiny /tmp/one --seed 1       a checkpoint
  python -m service.demo_models.tiny /tmp/two --seed 2       one that answers the same questions differently
  glmctl release add /tmp/one --version 1.0.0                import it as a release

sizes: """
        + "; ".join(f"{name}: {size.layers} layers, hidden size {size.hidden}" for name, size in SIZES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="output directory; created if missing")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="size of the model (default: tiny)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="type of the weights (default: bfloat16)",
    )
    args = parser.parse_args(argv)
    started = time.perf_counter()
    made = make(args.out, seed=args.seed, size=args.size, dtype=args.dtype)
    print(  # noqa: T201
        f"{args.out}: {made['parameters'] / 1e6:.2f} M parameters, {made['bytes'] / 1e6:.1f} MB, "
        f"{time.perf_counter() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
