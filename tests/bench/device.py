"""How close are decoding and loading to the limits of a GPU, with the shape of the 9B model and random weights?

    python -m tests.bench.device                             a CUDA device with 40 GB or more, 21 GB of disk
    python -m tests.bench.device --shape small --device cpu  the same steps without a GPU; the results mean nothing

The limits are measured: that of decoding by a large copy on the device, that of loading by a copy to it from pinned
memory. A decode step reads every weight of the text model once, so the bandwidth divided by the size of these weights
is the highest number of tokens a second for one row.
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

from service.engine.core import Core
from service.engine.detokenizer import Detokenizer, OutputProcessor, StopStrings
from service.engine.pace import Pace
from service.engine.paged_cache import cache_for
from service.engine.prompt import Prompt
from service.engine.protocol import Sampling
from service.engine.runner import Runner
from service.engine.sampling_params import SamplingParams
from service.engine.sequence import Sequence as Request
from service.model import weights

PROMPT, TOKENS, ROWS = 128, 256, 64


def config(shape: str) -> Any:
    """Return the configuration of GLM-4.6V-Flash (`9b`, 10.29 G parameters), or of a small model."""
    rope = {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5}
    text: dict[str, Any] = {"attention_bias": True, "rope_parameters": rope | {"mrope_section": [8, 12, 12]}}
    vision: dict[str, Any] = {}
    if shape == "small":
        text |= {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
        text |= {"vocab_size": 2048, "rope_parameters": rope | {"mrope_section": [4, 6, 6]}}
        vision = {"hidden_size": 64, "depth": 2, "num_heads": 2, "intermediate_size": 192, "out_hidden_size": 256}
    return Glm4vConfig(text_config=text, vision_config=vision)


def write(directory: Path, shape: str, device: torch.device) -> int:
    """Write a checkpoint of random weights in bfloat16, in shards; returns its size in bytes."""
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


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Return the shortest of several times; the first is warm-up and does not count."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def bandwidths(device: torch.device) -> tuple[float, float]:
    """Return bytes a second: read and written by a copy on the device, and copied to it from pinned memory."""
    size = 4 << 30 if device.type == "cuda" else 256 << 20
    source, target = (torch.empty(size, dtype=torch.uint8, device=device).fill_(1) for _ in range(2))
    memory = 2 * size / best_seconds(lambda: target.copy_(source), device)
    host = torch.empty(size // 4, dtype=torch.uint8, pin_memory=device.type == "cuda").fill_(1)
    link = host.nbytes / best_seconds(lambda: target[: size // 4].copy_(host, non_blocking=True), device)
    return memory, link


def load(directory: Path, shape: str, device: torch.device) -> tuple[Any, float]:
    """Load the checkpoint with the service's code; returns the model and the seconds. Files are in the page cache."""
    synchronize(device)
    started = time.perf_counter()
    shards = sorted(directory.glob("*.safetensors"))
    model = weights.assemble(config(shape), weights.read(shards, device, torch.bfloat16, lambda *_: None))
    synchronize(device)
    return model, time.perf_counter() - started


def generate(model: Any, rows: int, device: torch.device) -> float:
    """Return the tokens a second of transformers' generate with one batch of `rows` prompts."""
    ids = torch.randint(1000, 2000, (rows, PROMPT), device=device)

    def run() -> None:
        tokens = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        if tokens.shape != (rows, PROMPT + TOKENS):
            raise ValueError(f"generate returned the shape {tuple(tokens.shape)}")

    return rows * TOKENS / best_seconds(run, device, repeats=2)


def build_core(model: Any, *, rows: int, columns: int) -> Core:
    """Return the engine's loop with a cache of `rows` requests of `columns` tokens."""
    cache = cache_for(model, rows * columns, rows=rows, context=columns)
    return Core(Runner(model, cache), lambda _: b"", pace=Pace(512))


def submit(core: Core, default: Any, *, prompt: int = PROMPT, tokens: int = TOKENS) -> Request:
    """Add a greedy request for `tokens` tokens after a random prompt of `prompt` tokens."""
    params = SamplingParams.resolve(Sampling(temperature=0), default, vocabulary=0, end=frozenset())
    positions = torch.arange(prompt).expand(3, -1)
    ids = torch.randint(1000, 2000, (prompt,))
    inputs = Prompt(ids, positions, 0, torch.zeros(prompt, dtype=torch.bool), (), may_think=False, think_open=False)
    output = OutputProcessor(Detokenizer(lambda ids: " x" * len(ids)), StopStrings(()), frozenset())
    request = Request(inputs, params, output, tokens)
    core.scheduler.add(request)
    return request


def decode(core: Core, default: Any, rows: int, tokens: int = TOKENS) -> float:
    """Return the tokens a second of the engine's decode steps, with `rows` requests after their prefill."""
    requests = [submit(core, default, tokens=tokens) for _ in range(rows)]
    while any(not request.tokens for request in requests):
        core.step()
    done = sum(len(request.tokens) for request in requests)
    started = time.perf_counter()
    while core.step():
        pass
    return (rows * tokens - done) / (time.perf_counter() - started)


def bytes_per_step(model: Any) -> int:
    """Return the bytes of the weights that a decode step reads: text model and output head, without the embedding."""
    parts = (model.model.language_model.layers, model.get_output_embeddings())
    return sum(parameter.nbytes for part in parts for parameter in part.parameters())


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("9b", "small"), default="9b", help="of the model (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="of torch (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="directory of the checkpoint (default: the temporary directory)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    options = parser.parse_args(argv)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no CUDA device found; --shape small --device cpu runs the same steps without one")
    logging.disable_progress_bar()
    device = torch.device(options.device)
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as directory:
        size = write(Path(directory), options.shape, device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        memory, link = bandwidths(device)
        model, load_seconds = load(Path(directory), options.shape, device)
        results["load, GB/s"], results["host to device, GB/s"] = size / load_seconds / 1e9, link / 1e9
        results["load to the copy (≥ 0.6)"] = size / load_seconds / link
        results["generate, batch of 1, tok/s"] = generate(model, 1, device)
        results[f"generate, batch of {ROWS}, tok/s"] = generate(model, ROWS, device)
        core = build_core(model, rows=ROWS, columns=2 * (PROMPT + TOKENS))
        core.warm_up()
        for rows in (1, ROWS):
            decode(core, model.generation_config, rows)  # captures the CUDA graphs
            results[f"engine, {rows} rows, tok/s"] = max(decode(core, model.generation_config, rows) for _ in range(3))
    limit = memory / bytes_per_step(model)
    results |= {
        "memory, GB/s": memory / 1e9,
        "limit of 1 row, tok/s": limit,
        "engine, 1 row, to the limit (≥ 0.8)": results["engine, 1 rows, tok/s"] / limit,
        f"engine to generate, {ROWS} rows": results[f"engine, {ROWS} rows, tok/s"]
        / results[f"generate, batch of {ROWS}, tok/s"],
    }
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    table = Table("", "result", title=f"{options.shape}, bfloat16, {size / 1e9:.2f} GB, on {device_name}")
    table.caption = f"prompts of {PROMPT} tokens, {TOKENS} new tokens, greedy"
    for name, value in results.items():
        table.add_row(name, f"{value:.3g}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"device": device_name, **results}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
