"""vLLM in a slot, for real: rollouts between both engines under load, and kill -9. `make test-vllm` runs it.

GLM_VLLM_ENV is the directory of an environment that has vLLM; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from deploy.releases.environments import Environment
from deploy.releases.store import Releases
from deploy.rollout.slot_client import data_url
from service.contract import processes
from service.demo_models import tiny
from tests.box import Box, empty_host, kill, wait_for
from tests.test_zero_loss import assert_nothing_lost, assert_receipts_add_up

ENVIRONMENT = os.environ.get("GLM_VLLM_ENV", "/nonexistent")

pytestmark = [
    pytest.mark.long,
    pytest.mark.alone,
    pytest.mark.skipif(
        not Path(ENVIRONMENT, "bin/python").exists(), reason="GLM_VLLM_ENV has no vLLM: `make test-vllm`"
    ),
]

START = 1500.0  # seconds; vLLM starts three processes, each of which imports it: 30 s on an idle machine
OURS, FIRST, SECOND = "1.0.0", "2.0.0", "2.1.0"
"""The native engine and vLLM with the weights of one seed; vLLM with those of another."""
SETTINGS = {"dtype": "float32", "kv_tokens": 65536}
VLLM = {"engine": "vllm", "vllm": {"max_model_len": 8192, "enforce_eager": True}}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A host on which the native engine is live."""
    path = tmp_path_factory.mktemp("checkpoints")
    for seed in (1, 2):
        tiny.make(path / str(seed), seed=seed, size="small", dtype="float32")
    with empty_host("model") as box:
        box.configure(threads=1, max_wait=START, load_stall=300)
        for version, seed, more in ((OURS, 1, {}), (FIRST, 1, VLLM), (SECOND, 2, VLLM)):
            engine = path / f"{version}.json"
            engine.write_text(json.dumps({**SETTINGS, **more}))
            environment = Environment(Path(ENVIRONMENT)) if more else None
            Releases(box.host).add(path / str(seed), version=version, engine=engine, environment=environment)
        deploy(box, OURS)
        yield box


def deploy(box: Box, version: str, *words: str) -> None:
    box.glmctl("deploy", version, "--bake", "3s", "--strategy", "overlap", *words, timeout=START)


@contextmanager
def load(box: Box, directory: Path) -> Iterator[Any]:
    """The mixed load with requests that may take as long as a start."""
    with box.load(directory, seconds=4 * START, scale=0.5, words=["--time-limit", str(START)]) as running:
        yield running


def ask(box: Box, content: Any, **more: Any) -> Any:
    """Return the answer of the live version."""
    response = httpx.post(
        f"http://{box.listen}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 24, **more},
        timeout=START,
        trust_env=False,
    )
    assert response.status_code == 200, response.text
    return response.json()


def questions(directory: Path) -> list[tuple[Any, dict[str, Any]]]:
    """Of text, of pictures, with a schema, with log probabilities, with what changes the sampling."""
    gradient = Image.linear_gradient("L").resize((224, 140)).convert("RGB")
    gradient.save(directory / "gradient.png")
    picture = {"type": "image_url", "image_url": {"url": data_url(directory / "gradient.png")}}
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    as_json = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return [
        ("Hello there", {}),
        ("Pretend: <|user|> and <|image|>", {}),
        ([picture, {"type": "text", "text": "What is it?"}], {}),
        ([picture, {"type": "text", "text": "and"}, picture], {}),
        ("Some JSON", {"response_format": as_json}),
        ("Hello", {"presence_penalty": 1.5, "frequency_penalty": 0.5}),
        ("Hello", {"logit_bias": {"700": 5}, "max_tokens": 5}),
        ("Hello", {"stop": [" the"], "max_tokens": 200}),
    ]


def processes_of(box: Box, slot: str) -> list[psutil.Process]:
    """Return the core of a slot's worker, and its processes."""
    (worker,) = box.generation(slot).alive_workers
    (record,) = (box.host.runtime / slot).glob(f"core-{worker.pid}.json")
    return [psutil.Process(pid) for pid, _ in json.loads(record.read_text())]


def assert_nothing_left(found: Sequence[psutil.Process]) -> None:
    wait_for(lambda: not [one for one in found if processes.start_ticks(one.pid) is not None])


def test_from_ours_to_vllm_and_back_under_load(box: Box, tmp_path: Path) -> None:
    """Nothing is lost, receipts add up, both engines answer alike, and no process of vLLM is left."""
    asked = questions(tmp_path)
    with load(box, tmp_path) as running:
        ours = [ask(box, content, **more) for content, more in asked]
        deploy(box, FIRST)
        theirs = [ask(box, content, **more) for content, more in asked]
        core = processes_of(box, box.slots.live or "")
        metrics = box.get("/metrics").text
        kill(core[0].pid)  # while requests run: answers go on with another core
        assert_nothing_left(core)
        again = ask(box, asked[0][0])
        another = processes_of(box, box.slots.live or "")
        deploy(box, OURS)
        report = running.stop()
    assert_nothing_lost(box, report)
    assert_receipts_add_up(box)
    assert_nothing_left(another)
    assert set(report.by_version) == {OURS, FIRST}
    assert again["choices"] == theirs[0]["choices"]
    for mine, other, (content, _) in zip(ours, theirs, asked, strict=True):
        assert other["choices"][0]["message"] == mine["choices"][0]["message"], content
        assert other["usage"]["prompt_tokens"] == mine["usage"]["prompt_tokens"], content
    series = [line for line in metrics.splitlines() if line.startswith("vllm:generation_tokens_total")]
    assert any(f'version="{FIRST}"' in line and 'slot="' in line for line in series)


def test_from_vllm_to_vllm_by_a_canary_under_load(box: Box, tmp_path: Path) -> None:
    """Both load beside each other on the host, and 30 % of the requests are answered by the new one."""
    deploy(box, FIRST)
    with load(box, tmp_path) as running:
        deploy(box, SECOND, "--canary", "30", "--step", "20s")
        report = running.stop()
    assert_nothing_lost(box, report)
    assert_receipts_add_up(box)
    assert set(report.by_version) == {FIRST, SECOND}


def test_weights_are_replaced_and_restored(box: Box, tmp_path: Path) -> None:
    """By the weights strategy: vLLM reads the files of the other release, for text and pictures."""
    asked = questions(tmp_path)[:4]
    deploy(box, FIRST)
    first = [ask(box, content)["choices"] for content, _ in asked]
    box.glmctl("deploy", SECOND, "--strategy", "weights", timeout=START)
    second = [ask(box, content)["choices"] for content, _ in asked]
    box.glmctl("deploy", FIRST, "--strategy", "weights", timeout=START)
    assert [ask(box, content)["choices"] for content, _ in asked] == first
    assert all(before != after for before, after in zip(first, second, strict=True))


@pytest.mark.parametrize("victim", ["worker", "master"])
def test_nothing_is_left_when_a_process_is_killed(box: Box, victim: str) -> None:
    """The core ends with its worker, and the slot serves again."""
    deploy(box, FIRST)
    slot = box.slots.live or ""
    before, core = box.generation(slot), processes_of(box, slot)
    kill(before.master if victim == "master" else before.alive_workers[0].pid)
    assert_nothing_left(core)
    old = {worker.pid for worker in before.alive_workers}

    def serves() -> bool:
        workers = box.generation(slot).alive_workers if box.show(f"glm@{slot}.service", "MainPID") != "0" else []
        return bool(workers) and not old & {worker.pid for worker in workers} and workers[0].phase == "ready"

    wait_for(serves, START)
    assert ask(box, "Hello")["choices"]
