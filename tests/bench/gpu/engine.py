"""The engine without a server: load of the weights, decode steps, and a prompt."""

from __future__ import annotations

import gc
import os
import statistics
import time
from typing import Any

from tests.bench.gpu.figures import COLUMNS, FIGURES, ROWS
from tests.bench.gpu.releases import Plan, shards
from tests.bench.gpu.report import Report

__all__ = ["measure"]

_LOADS, _DECODES, _PROMPTS, _STEPS = 2, 3, 5, 20
_QUICK_TOKENS = 16  # of a decoding row; else as many as tests.bench.device takes
_MARGIN = 8  # columns that the cache has beyond those measured


def measure(plan: Plan, report: Report) -> None:
    """Measure in this process; the device is free again when it ends."""
    import torch
    from transformers.utils import logging

    from tests.bench import device as gpu

    logging.disable_progress_bar()
    device = torch.device(plan.device)
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))  # as a worker does
    size = sum(file.stat().st_size for file in shards(plan))
    report.figure("engine.weights", size / 1e9)
    times, model = [], None
    with torch.inference_mode():
        for _ in range(1 if plan.quick else _LOADS):
            model = None  # before the next one: the device need not hold two
            _free(device)
            with report.step("load of the weights"):
                model, seconds = gpu.load(plan.model, plan.shape, device)
            times.append(seconds)
        report.figure("engine.load", min(times))
        report.figure("engine.load_rate", size / min(times) / 1e9)
        report.figure("engine.step_weights", gpu.bytes_per_step(model) / 1e9)
        _rates(plan, report, model)
        _free(device)
        _columns(plan, report, model)


def _rates(plan: Plan, report: Report, model: Any) -> None:
    """Measure the tokens a second by rows, and the time of a prompt."""
    from tests.bench import device as gpu

    core = gpu.build_core(model, rows=max(ROWS), columns=2 * (gpu.PROMPT + gpu.TOKENS))
    with report.step("warm-up of the engine"):
        core.warm_up()
    for rows in ROWS:
        with report.step(FIGURES[f"engine.rate_{rows}"].what):
            if plan.quick:
                rate = gpu.decode(core, model.generation_config, rows, tokens=_QUICK_TOKENS)
            else:
                gpu.decode(core, model.generation_config, rows)  # captures the CUDA graphs
                rate = max(gpu.decode(core, model.generation_config, rows) for _ in range(_DECODES))
        report.figure(f"engine.rate_{rows}", rate)

    def prompt() -> None:
        _run(core, gpu.submit(core, model.generation_config, prompt=512, tokens=1), tokens=1)

    with report.step("prompts of 512 tokens"):
        seconds = gpu.best_seconds(prompt, model.device, repeats=1 if plan.quick else _PROMPTS)
    report.figure("engine.prompt_512", seconds * 1000)


def _columns(plan: Plan, report: Report, model: Any) -> None:
    """Measure the step of one row by its length. The time of a step includes sampling and the loop."""
    import torch

    from tests.bench import device as gpu

    try:
        core = gpu.build_core(model, rows=1, columns=max(COLUMNS) + _MARGIN)
    except (ValueError, torch.OutOfMemoryError) as error:
        for columns in COLUMNS:
            report.figure(f"engine.step_{columns}", None, str(error).splitlines()[0])
        return
    steps = 4 if plan.quick else _STEPS
    for columns in COLUMNS:
        with report.step(FIGURES[f"engine.step_{columns}"].what):
            request = gpu.submit(core, model.generation_config, prompt=columns - 2 * steps, tokens=2 * steps)
            _run(core, request, tokens=steps)  # the prompt, and steps that are not counted
            times = []
            for count in range(steps + 1, 2 * steps + 1):
                started = time.perf_counter()
                _run(core, request, tokens=count)
                times.append(time.perf_counter() - started)
        report.figure(f"engine.step_{columns}", statistics.median(times) * 1000)


def _run(core: Any, request: Any, *, tokens: int) -> None:
    """Run steps until `request` has that many tokens; raises RuntimeError if it ends before."""
    while len(request.tokens) < tokens:
        if not core.step():
            raise RuntimeError(f"a request of {request.prompt.length} tokens failed; the log above has the reason")


def _free(device: Any) -> None:
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
