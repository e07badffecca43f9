"""The true 9B shape on a CUDA device, with random weights: how near decoding and loading come to what memory allows.

    python -m tests.bench.device                            one CUDA device of 40 GB or more, 21 GB of disk
    python -m tests.bench.device --shape small --device cpu  the same steps anywhere; its figures say nothing

Limits are measured, not looked up: decoding by a large copy on the device, loading by a copy from pinned memory to it.
A decode step reads every weight of the text model once, so bandwidth over those bytes is the most tokens a second that
one row can get.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Glm4vConfig, Glm4vForConditionalGeneration
from transformers.utils import logging

from service.engine.cache import Budget, SlotCache
from service.engine.core import Core
from service.engine.detokenizer import Detokenizer, OutputProcessor, StopStrings
from service.engine.prompt import Prompt
from service.engine.protocol import Sampling
from service.engine.runner import Runner
from service.engine.sampling_params import SamplingParams
from service.engine.sequence import Sequence as Request
from service.model import weights

PROMPT, TOKENS, ROWS = 128, 256, 64


def config(shape: str) -> Any:
    """GLM-4.6V-Flash's own numbers, 10.29 G parameters in bfloat16, or few enough for a laptop."""
    rope = {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5}
    text: dict[str, Any] = {"attention_bias": True, "rope_parameters": rope | {"mrope_section": [8, 12, 12]}}
    vision: dict[str, Any] = {}
    if shape == "small":
        text |= {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
        text |= {"vocab_size": 2048, "rope_parameters": rope | {"mrope_section": [4, 6, 6]}}
        vision = {"hidden_size": 64, "depth": 2, "num_heads": 2, "intermediate_size": 192, "out_hidden_size": 256}
    return Glm4vConfig(text_config=text, vision_config=vision)


def write(directory: Path, shape: str, device: torch.device) -> int:
    """Draw the weights on the device and write them in shards; returns their bytes."""
    with torch.device("meta"):
        model = Glm4vForConditionalGeneration(config(shape))
    model = model.to(torch.bfloat16).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                parameter.normal_(std=0.02)
    model.save_pretrained(directory, max_shard_size="4GB")
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The shortest of several times, after one that does not count."""
    took = []
    for _ in range(repeats + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        took.append(time.perf_counter() - began)
    return min(took[1:])


def bandwidths(device: torch.device) -> tuple[float, float]:
    """Bytes a second: read and written by a copy on the device, and copied to it from pinned memory."""
    size = 4 << 30 if device.type == "cuda" else 256 << 20
    one, other = (torch.empty(size, dtype=torch.uint8, device=device).fill_(1) for _ in range(2))
    memory = 2 * size / seconds(lambda: other.copy_(one), device)
    host = torch.empty(size // 4, dtype=torch.uint8, pin_memory=device.type == "cuda").fill_(1)
    link = host.nbytes / seconds(lambda: other[: size // 4].copy_(host, non_blocking=True), device)
    return memory, link


def load(directory: Path, shape: str, device: torch.device) -> tuple[Any, float]:
    """Load by the service's own code; returns the model and the seconds. The files are in the page cache."""
    wait(device)
    began = time.perf_counter()
    shards = sorted(directory.glob("*.safetensors"))
    model = weights.assemble(config(shape), weights.read(shards, device, torch.bfloat16, lambda *_: None))
    wait(device)
    return model, time.perf_counter() - began


def generate(model: Any, rows: int, device: torch.device) -> float:
    """Tokens a second of transformers' generate with a batch of so many prompts."""
    ids = torch.randint(1000, 2000, (rows, PROMPT), device=device)

    def run() -> None:
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        if made.shape != (rows, PROMPT + TOKENS):
            raise ValueError(f"generate made {tuple(made.shape)}")

    return rows * TOKENS / seconds(run, device, repeats=2)


def decode(core: Core, default: Any, rows: int) -> float:
    """Tokens a second of ours, of rows that have their prompts behind them."""
    params = SamplingParams.resolve(Sampling(temperature=0), default)
    requests = []
    for _ in range(rows):
        positions = torch.arange(PROMPT).expand(3, -1)
        ids = torch.randint(1000, 2000, (PROMPT,))
        prompt = Prompt(ids, positions, 0, torch.zeros(PROMPT, dtype=torch.bool), (), may_think=False, think_open=False)
        output = OutputProcessor(Detokenizer(lambda ids: " x" * len(ids)), StopStrings(()), frozenset())
        requests.append(Request(prompt, params, output, TOKENS))
        core.scheduler.add(requests[-1])
    while any(not request.tokens for request in requests):
        core.step()
    said = sum(len(request.tokens) for request in requests)
    began = time.perf_counter()
    while core.step():
        pass
    return (rows * TOKENS - said) / (time.perf_counter() - began)


def read_in_a_step(model: Any) -> int:
    """Bytes of the weights that a decode step reads: the text model's and the head's, not the embedding's."""
    parts = (model.model.language_model.layers, model.get_output_embeddings())
    return sum(parameter.nbytes for part in parts for parameter in part.parameters())


@torch.inference_mode()
def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("9b", "small"), default="9b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scratch", type=Path, help="where the shards are written (default: the temporary directory)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    asked = parser.parse_args(words)
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --shape small --device cpu goes through the same steps")
    logging.disable_progress_bar()
    device = torch.device(asked.device)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=asked.scratch) as directory:
        size = write(Path(directory), asked.shape, device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        memory, link = bandwidths(device)
        model, took = load(Path(directory), asked.shape, device)
        figures["load, GB/s"], figures["host to device, GB/s"] = size / took / 1e9, link / 1e9
        figures["load to the copy (≥ 0.6)"] = size / took / link
        figures["generate, batch of 1, tok/s"] = generate(model, 1, device)
        figures[f"generate, batch of {ROWS}, tok/s"] = generate(model, ROWS, device)
        budget = Budget.of(model, rows=ROWS, kv_tokens=ROWS * 2 * (PROMPT + TOKENS), context=2 * (PROMPT + TOKENS))
        core = Core(Runner(model, SlotCache(model, budget)), lambda _: b"", chunk=512)
        core.warm_up()
        for rows in (1, ROWS):
            decode(core, model.generation_config, rows)  # graphs of the columns it will meet
            figures[f"ours, {rows} rows, tok/s"] = max(decode(core, model.generation_config, rows) for _ in range(3))
    limit = memory / read_in_a_step(model)
    figures |= {
        "memory, GB/s": memory / 1e9,
        "limit of 1 row, tok/s": limit,
        "ours, 1 row, to the limit (≥ 0.8)": figures["ours, 1 rows, tok/s"] / limit,
        f"ours to generate, {ROWS} rows": figures[f"ours, {ROWS} rows, tok/s"]
        / figures[f"generate, batch of {ROWS}, tok/s"],
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    table = Table("what", "figure", title=f"{asked.shape}, bfloat16, {size / 1e9:.2f} GB, on {name}")
    table.caption = f"prompts of {PROMPT} tokens, {TOKENS} new ones, greedy"
    for what, figure in figures.items():
        table.add_row(what, f"{figure:.3g}")
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps({"device": name, **figures}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
