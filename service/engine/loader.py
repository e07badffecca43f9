"""Selects the engine that GLM_ENGINE or the release names, and imports torch only for a real one."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import time
from pathlib import Path

from service.contract import memory_policy
from service.contract.devices import Devices, Gpu, label
from service.contract.generations import all_generations
from service.contract.memory_policy import MemoryPolicy
from service.engine.protocol import Limits, WorkerEngine
from service.model.imports import import_transformers
from service.model.release import Progress, Release
from service.settings import Settings

__all__ = ["load", "preload"]

logger = logging.getLogger("gunicorn.error")


def preload(settings: Settings, engine: str = "native") -> float:
    """Import in the master what every worker is forked with; returns the seconds it took.

    Nothing for an engine other than `native`: vLLM imports transformers in its own way. No thread may be started and
    no device used before the fork. The imported objects are frozen: a garbage collection in a worker would write to
    their pages, and copy them.
    """
    started = time.monotonic()
    if settings.engine == "model" and engine == "native":
        importlib.import_module("service.engine.model_engine")
        import_transformers()
        gc.collect()
        gc.freeze()
    return time.monotonic() - started


def load(release: Release, settings: Settings, progress: Progress, gpu: Gpu | None = None) -> WorkerEngine:
    """Load a release and block until it is in memory, not warmed up yet; raises ReleaseError.

    `gpu`: the one to which this process is pinned.
    """
    limits = Limits(
        max_prompt_tokens=settings.max_prompt_tokens,
        max_wait=settings.max_wait,
        max_seconds=settings.max_seconds,
        stall=settings.stall,
        client_rows=settings.client_rows,
        max_schema=settings.max_schema,
    )
    if settings.engine == "dummy":
        from service.engine.dummy import DummyEngine

        logger.warning("GLM_ENGINE=dummy: no model is loaded, answers are random words; for tests only")
        logger.info("CUDA_VISIBLE_DEVICES=%s", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        return DummyEngine.load(release, limits=limits, progress=progress)
    if release.engine.engine == "vllm":
        return _load_vllm(release, settings, progress, gpu, limits)
    from service.engine.memory import MemoryShare
    from service.engine.model_engine import ModelEngine

    share = MemoryShare(_policy(settings.policy, gpu), _held_by_others(settings.runtime, label(gpu)))
    threads = settings.threads or max(1, (os.cpu_count() or 1) // max(1, settings.workers) - 1)
    return ModelEngine.load(release, threads=threads, limits=limits, progress=progress, share=share)


def _load_vllm(
    release: Release, settings: Settings, progress: Progress, gpu: Gpu | None, limits: Limits
) -> WorkerEngine:
    from service.engine.vllm.phases import Phases, phase_file, reported

    directory = settings.runtime / settings.slot
    with reported(progress, Phases(phase_file(directory))):
        from service.engine.memory import MemoryShare
        from service.engine.vllm.arguments import arguments, memory_of_copy
        from service.engine.vllm.backend import Vllm
        from service.engine.vllm.engine import VllmEngine
        from service.engine.vllm.stats import Labels

        share = MemoryShare(_policy(settings.policy, gpu), _held_by_others(settings.runtime, label(gpu)))
        sizes, memory = memory_of_copy(release, gpu, share)
        engine: VllmEngine | None = None
        backend = Vllm(
            arguments(release, served_model=settings.served_model, max_images=settings.max_images, sizes=sizes),
            lambda: Labels(engine.version if engine else release.version, settings.slot),
            directory,
        )
        engine = VllmEngine.load(release, backend, limits=limits, directory=directory, memory=memory)
    return engine


def _policy(path: Path, gpu: Gpu | None) -> MemoryPolicy:
    """Return the policy of the device. A file that cannot be read must not keep a slot down: preflight refuses it."""
    try:
        return memory_policy.read(path).on(gpu, Devices.read(path))
    except (OSError, ValueError) as error:
        logger.error("the defaults of [memory] are used, because %s is invalid: %s", path, error)  # noqa: TRY400
        return MemoryPolicy()


def _held_by_others(runtime: Path, device: str) -> int:
    """Return the bytes that the workers of other generations, of either slot, take of the device."""
    total = 0
    for generation in all_generations(runtime):
        workers = generation.alive_workers
        if os.getpid() not in {worker.pid for worker in workers}:
            total += sum(worker.memory_on(device) for worker in workers)
    return total
