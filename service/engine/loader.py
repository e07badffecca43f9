"""Selects the engine that GLM_ENGINE names, and imports torch only for the real one."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import time

from service.engine.protocol import Limits, WorkerEngine
from service.model.imports import import_transformers
from service.model.release import Progress, Release
from service.settings import Settings

__all__ = ["load", "preload"]

logger = logging.getLogger("gunicorn.error")


def preload(settings: Settings) -> float:
    """Import in the master what every worker is forked with; returns the seconds it took.

    No thread may be started and no device used before the fork. The imported objects are frozen: a garbage collection
    in a worker would write to their pages, and copy them.
    """
    started = time.monotonic()
    if settings.engine == "model":
        importlib.import_module("service.engine.model_engine")
        import_transformers()
        gc.collect()
        gc.freeze()
    return time.monotonic() - started


def load(release: Release, settings: Settings, progress: Progress) -> WorkerEngine:
    """Load a release and block until it is in memory, not warmed up yet; raises ReleaseError."""
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
    from service.engine.model_engine import ModelEngine

    threads = settings.threads or max(1, (os.cpu_count() or 1) // max(1, settings.workers) - 1)
    return ModelEngine.load(release, threads=threads, limits=limits, progress=progress)
