"""The names that are used of vLLM are those of the real one."""

from __future__ import annotations

import inspect
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.contract import vllm_settings
from service.contract.engine_settings import parse
from service.engine.vllm import arguments, llm, sampling
from service.model.release import Release
from tests.fake_llm import FakeLLM
from tests.vllm_fixtures import ENVIRONMENT, NEEDS_VLLM

PROGRAM = """
import dataclasses, inspect, json
from vllm import AsyncEngineArgs, SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.logprobs import Logprob
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from service.engine.vllm.backend import argument_names
from service.engine.vllm.stats import Labels, Stats, logger_class

def names(kind):
    return sorted(inspect.signature(kind).parameters)

logger_class(Stats(), lambda: Labels("1.0.0", "blue"))
print(json.dumps({
    "methods": {name: {one.name: one.kind.name for one in inspect.signature(value).parameters.values()}
                for name, value in vars(AsyncLLM).items() if inspect.isfunction(value)},
    "properties": sorted(name for name, value in vars(AsyncLLM).items() if isinstance(value, property)),
    "arguments": sorted(argument_names()),
    "sampling": names(SamplingParams), "structured": names(StructuredOutputsParams),
    "output": names(RequestOutput), "completion": names(CompletionOutput), "logprob": names(Logprob),
}))
"""

pytestmark = NEEDS_VLLM


@pytest.fixture(scope="module")
def real() -> Any:
    done = subprocess.run([ENVIRONMENT.python, "-c", PROGRAM], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_stand_in_has_the_signatures_of_the_real_one(real: Any) -> None:
    """Every method that is called takes the same arguments, by position and by name."""
    declared = {name: value for name, value in vars(llm.AsyncLLM).items() if inspect.isfunction(value)}
    assert "errored" in real["properties"]
    for name in declared.keys() - {"__init__", "__subclasshook__", "_no_init_or_replace_init"}:
        theirs = real["methods"][name]
        for kind in (llm.AsyncLLM, FakeLLM):
            for parameter in inspect.signature(getattr(kind, name)).parameters.values():
                assert parameter.name in theirs, (kind, name)
                assert theirs[parameter.name] == parameter.kind.name or theirs[parameter.name] != "KEYWORD_ONLY"


def test_the_fields_of_requests_and_outputs_exist(real: Any) -> None:
    """Those that are set, and those that are read."""
    from types import SimpleNamespace

    from service.engine import Sampling

    given = sampling.params(
        Sampling(),
        SimpleNamespace(do_sample=True),
        vocabulary=9,
        end=frozenset(),
        max_tokens=1,
    )
    assert given.keys() | {"structured_outputs", "output_kind"} <= set(real["sampling"])
    assert "grammar" in real["structured"]
    assert {"outputs", "finished"} <= set(real["output"])
    assert {"token_ids", "logprobs", "finish_reason"} <= set(real["completion"])
    assert {"logprob", "rank"} <= set(real["logprob"])


def test_the_arguments_that_are_set_exist(real: Any, tmp_path: Path) -> None:
    """Those of the server; and those that are read from the source are all that vLLM has."""
    known = set(real["arguments"])
    assert set(ENVIRONMENT.argument_names() or ()) == known
    release = Release(tmp_path, "1.0.0", parse({"engine": "vllm"}), ())
    names = arguments.arguments(release, served_model="x", max_images=1, sizes={}).keys()
    assert names | {"model", "kv_cache_memory_bytes", "gpu_memory_utilization", "enable_sleep_mode"} <= known
    assert names <= vllm_settings.DECIDED.keys()  # a release cannot set them, and so cannot be ignored


def test_names_that_a_release_may_not_set_are_of_vllm(real: Any) -> None:
    """Of this or of an earlier version; most of them are of this one."""
    refused = vllm_settings.DECIDED.keys() | vllm_settings.RUNS_CODE
    assert len(refused & set(real["arguments"])) > len(refused) * 0.7
