"""What the tests of the real vLLM share: its environment, which `make vllm` makes, and releases for it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.releases.environments import Environment
from deploy.releases.store import Releases
from service.demo_models import tiny
from tests.box import Box

ENVIRONMENT = Environment(Path(os.environ.get("GLM_VLLM_ENV", "/nonexistent")))
"""GLM_VLLM_ENV is the directory of an environment that has vLLM; without it these tests are skipped."""

NEEDS_VLLM = [
    pytest.mark.long,
    pytest.mark.skipif(not ENVIRONMENT.python.exists(), reason="GLM_VLLM_ENV has no vLLM: `make test-vllm`"),
]

START = 1500.0  # seconds; vLLM starts three processes, each of which imports it: 30 s on an idle machine
NATIVE: Mapping[str, Any] = {"dtype": "float32", "kv_tokens": 65536}
VLLM: Mapping[str, Any] = {**NATIVE, "engine": "vllm", "vllm": {"max_model_len": 8192, "enforce_eager": True}}


def make_checkpoint(path: Path, seed: int) -> Path:
    """Make the smallest checkpoint whose head size vLLM supports on the CPU."""
    tiny.make(path, seed=seed, size="small", dtype="float32")
    return path


def add_release(box: Box, version: str, checkpoint: Path, settings: Mapping[str, Any]) -> None:
    """Add a release with these engine settings; one of vLLM runs in its environment."""
    engine = checkpoint.parent / f"{version}.json"
    engine.write_text(json.dumps(settings))
    environment = ENVIRONMENT if settings.get("engine") == "vllm" else None
    Releases(box.host).add(checkpoint, version=version, engine=engine, environment=environment)


def configure(box: Box, **settings: object) -> None:
    """Let the host wait for the starts of vLLM."""
    box.configure(threads=1, max_wait=START, load_stall=300, **settings)
