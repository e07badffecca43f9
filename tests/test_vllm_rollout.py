"""vLLM in a slot, for real: rollouts between both engines under load, and kill -9. `make test-vllm` runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from deploy.rollout.slot_client import data_url
from service.contract import processes
from service.contract.generations import Generation, current
from tests.box import Box, empty_host, kill, wait_for
from tests.test_zero_loss import assert_nothing_lost, assert_receipts_add_up
from tests.vllm_fixtures import NATIVE, NEEDS_VLLM, START, VLLM, add_release, configure, make_checkpoint

pytestmark = [*NEEDS_VLLM, pytest.mark.alone]

OURS, FIRST, SECOND = "1.0.0", "2.0.0", "2.1.0"
"""The native engine and vLLM with the weights of one seed; vLLM with those of another."""
STALL = 45.0
"""Seconds without a token after which a core is hung."""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A host on which the native engine is live."""
    path = tmp_path_factory.mktemp("checkpoints")
    one, other = (make_checkpoint(path / str(seed), seed) for seed in (1, 2))
    with empty_host("model") as box:
        configure(box, stall=STALL)
        add_release(box, OURS, one, NATIVE)
        add_release(box, FIRST, one, VLLM)
        add_release(box, SECOND, other, VLLM)
        deploy(box, OURS)
        yield box


def deploy(box: Box, version: str, *words: str, strategy: str = "overlap") -> None:
    bake = () if strategy == "weights" else ("--bake", "3s")
    box.glmctl("deploy", version, "--strategy", strategy, *bake, *words, timeout=START)


def require_live(box: Box, version: str) -> None:
    """Deploy a version unless it is live: each start of vLLM takes half a minute."""
    if box.slots.version(box.slots.live or "") != version:
        deploy(box, version)


@contextmanager
def load(box: Box, directory: Path) -> Iterator[Any]:
    """The mixed load with requests that may take as long as a start."""
    with box.load(directory, seconds=4 * START, scale=0.3, words=["--time-limit", str(START)]) as running:
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


def serves_again(box: Box, slot: str, before: Generation) -> bool:
    """Return whether another worker than those before is ready in a slot."""
    found = current(box.host.runtime, slot)
    ready = [worker.pid for worker in found.alive_workers if worker.phase == "ready"] if found else []
    return bool(ready) and not {worker.pid for worker in before.workers} & set(ready)


def test_from_ours_to_vllm_under_load(box: Box, tmp_path: Path) -> None:
    """Nothing is lost, receipts add up, both engines answer alike, and a core that is killed is replaced."""
    require_live(box, OURS)
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
        report = running.stop()
    assert_nothing_lost(box, report)
    assert_receipts_add_up(box)
    assert set(report.by_version) == {OURS, FIRST}
    assert again["choices"] == theirs[0]["choices"]
    for mine, other, (content, _) in zip(ours, theirs, asked, strict=True):
        assert other["choices"][0]["message"] == mine["choices"][0]["message"], content
        assert other["usage"]["prompt_tokens"] == mine["usage"]["prompt_tokens"], content
    series = [line for line in metrics.splitlines() if line.startswith("vllm:generation_tokens_total")]
    assert any(f'version="{FIRST}"' in line and 'slot="' in line for line in series)


def test_weights_are_replaced_and_restored_under_load(box: Box, tmp_path: Path) -> None:
    """By the weights strategy: vLLM reads the files of the other release, for text and pictures."""
    require_live(box, FIRST)
    asked = questions(tmp_path)[:4]
    with load(box, tmp_path) as running:
        first = [ask(box, content)["choices"] for content, _ in asked]
        deploy(box, SECOND, strategy="weights")
        second = [ask(box, content)["choices"] for content, _ in asked]
        deploy(box, FIRST, strategy="weights")
        assert [ask(box, content)["choices"] for content, _ in asked] == first
        report = running.stop()
    assert all(before != after for before, after in zip(first, second, strict=True))
    assert_nothing_lost(box, report)
    assert_receipts_add_up(box)
    assert set(report.by_version) == {FIRST, SECOND}


def test_from_vllm_to_vllm_by_a_canary_under_load(box: Box, tmp_path: Path) -> None:
    """Both load beside each other on the host, and 30 % of the requests are answered by the new one."""
    require_live(box, FIRST)
    with load(box, tmp_path) as running:
        deploy(box, SECOND, "--canary", "30", "--step", "10s")
        report = running.stop()
    assert_nothing_lost(box, report)
    assert_receipts_add_up(box)
    assert set(report.by_version) == {FIRST, SECOND}


def test_from_vllm_to_vllm_by_a_swap_under_load(box: Box, tmp_path: Path) -> None:
    """The core ends with its worker before the next one loads, and clients wait meanwhile."""
    require_live(box, SECOND)
    with load(box, tmp_path) as running:
        core = processes_of(box, box.slots.live or "")
        swap = box.begin("deploy", FIRST, "--strategy", "swap", "--bake", "3s", "--deadline", f"{START:g}s")
        box.await_phase(swap, "start", START)
        assert_nothing_left(core)
        out, _ = swap.communicate(timeout=START)
        assert swap.returncode == 0, out
        report = running.stop()
    assert_nothing_lost(box, report)
    assert_receipts_add_up(box)
    assert set(report.by_version) == {FIRST, SECOND}


@pytest.mark.parametrize("victim", ["worker", "master", "hung core"])
def test_nothing_is_left_when_a_process_is_killed_under_load(box: Box, tmp_path: Path, victim: str) -> None:
    """The core ends with its worker, and the slot serves again. Each client lost what the process held of it at most.

    A core that hangs (SIGSTOP) computes no token: its worker is replaced.
    """
    require_live(box, FIRST)
    slot = box.slots.live or ""
    with load(box, tmp_path) as running:
        before, core = box.generation(slot), processes_of(box, slot)
        if victim == "hung core":
            core[0].suspend()
        else:
            kill(before.master if victim == "master" else before.alive_workers[0].pid)
        wait_for(lambda: serves_again(box, slot, before), START)
        assert_nothing_left(core)
        assert ask(box, "Hello")["choices"]
        report = running.stop()
    moments = [loss.at for loss in report.losses]
    assert max(moments, default=0) - min(moments, default=0) < 5, report.losses
    for name, clients in report.by_class.items():
        assert clients.lost <= clients.clients * (4 if name == "pipelined" else 1), report.losses


def test_from_vllm_to_ours_under_load(box: Box, tmp_path: Path) -> None:
    """And no process of vLLM is left."""
    if box.slots.version(box.slots.live or "") == OURS:
        deploy(box, FIRST)
    core = processes_of(box, box.slots.live or "")
    with load(box, tmp_path) as running:
        deploy(box, OURS)
        report = running.stop()
    assert_nothing_left(core)
    assert_nothing_lost(box, report)
    assert report.by_version[OURS]
