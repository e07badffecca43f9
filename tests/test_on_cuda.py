"""The engine's steps on a CUDA device; skipped without one. On a GPU: pytest --long tests/test_on_cuda.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.engine.core import Core
from service.engine.pace import Pace
from service.engine.paged_cache import PagedCache, cache_for
from service.engine.runner import Runner
from tests.batching_fixtures import COLUMNS, RequestFactory, run

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # of Triton and of torch's compiler
]


def test_captured_steps_give_the_tokens_of_generate(tmp_path: Path) -> None:
    """Paged cache, compiled kernels, graphs and lookahead in fp32; and no shape is captured after the warm-up."""
    factory = RequestFactory(tmp_path / "model", device="cuda")
    model = factory.checkpoint.model
    cache = cache_for(model, 4 * 256, rows=4, context=COLUMNS)
    assert isinstance(cache, PagedCache)
    runner = Runner(model, cache)
    core = Core(runner, factory.checkpoint.processor.token_bytes, pace=Pace(256, 0.05, cache.least_chunk))
    core.warm_up()
    captured = set(runner._graphs)
    requests = [factory.request(number) for number in range(len(factory.prompts))]
    for request in requests:
        core.scheduler.add(request.sequence)
        core.step()
        core.step()
    run(core)
    assert set(runner._graphs) == captured
    assert [request.tokens for request in requests] == factory.expected
