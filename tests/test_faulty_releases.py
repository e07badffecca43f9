"""Releases that pass their checks and then are slow, fail, or answer wrong: they are rolled back."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.box import Box

ASK = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0, "stream": True}
CANARY, BAKE = ("--canary", "50", "--step", "60s"), ("--bake", "60s")

FAULT = """
import asyncio, os, random, time
from service.chat import service as chat

complete_unchanged, stream_unchanged = chat.ChatService.create_completion, chat.ChatService._stream

async def complete(self, *args, **more):
    reply = await complete_unchanged(self, *args, **more)
    if os.path.exists({flag!r}) and {fault!r} == "wrong":
        reply["choices"][0]["message"]["content"] = "nonsense"
    return reply

async def stream(self, *args, **more):
    if os.path.exists({flag!r}) and {fault!r} == "slow":
        await asyncio.sleep(0.15)
    if {fault!r} == "cold" and os.path.exists({flag!r}) and time.time() - os.path.getmtime({flag!r}) < 3:
        await asyncio.sleep(0.05)
    share = {{"fails": 0.05, "fails always": 1.0}}.get({fault!r}, 0.0)
    if os.path.exists({flag!r}) and random.random() < share:
        raise RuntimeError("on purpose")
    async for item in stream_unchanged(self, *args, **more):
        yield item

chat.ChatService.create_completion, chat.ChatService._stream = complete, stream
"""


@contextmanager
def traffic(box: Box) -> Iterator[None]:
    """Run four clients that send requests, with pauses that leave the cores to the rollout."""
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=f"http://{box.listen}", timeout=60, trust_env=False) as client:
            while not over.is_set():
                client.post("/v1/chat/completions", json=ASK)
                time.sleep(0.02)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join()


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """The fault begins when this file exists."""
    return tmp_path / "begin"


def make_faulty(box: Box, tmp_path: Path, flag: Path, fault: str) -> None:
    """Give the version in green a fault."""
    code = tmp_path / "fault"
    code.mkdir()
    (code / "sitecustomize.py").write_text(FAULT.format(flag=str(flag), fault=fault))
    drop_in = box.host.units / "glm@green.service.d/fault.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nEnvironment=PYTHONPATH={code}\n")
    box.systemctl("daemon-reload")


def rolled_back(box: Box, flag: Path, *words: str) -> dict[str, Any]:
    """Deploy under traffic; the fault begins after the checks. Returns the last verdict."""
    with traffic(box):
        deploy = box.begin("deploy", "1.1.0", *words)
        box.await_phase(deploy, "canary" if "--canary" in words else "bake")
        flag.touch()
        out, _ = deploy.communicate(timeout=120)
        assert deploy.returncode == 5, out
        assert box.get("/version").json()["version"] == "1.0.0"
    record = box.json("history")["rollouts"][-1]
    assert record["outcome"] == "rolled back"
    assert record["analysis"][-1]["outcome"] == "worse"
    assert record["analysis"][-1]["reason"] in record["reason"]
    assert box.show("glm@green.service", "ActiveState") == "inactive"
    return dict(record["analysis"][-1])


@pytest.mark.parametrize("words", [CANARY, pytest.param(BAKE, marks=pytest.mark.long)])
def test_a_slow_release(box: Box, tmp_path: Path, flag: Path, words: tuple[str, ...]) -> None:
    """It is compared with the live slot in the canary, and in the bake with the old slot before the cutover."""
    make_faulty(box, tmp_path, flag, "slow")
    if "--bake" in words:
        with traffic(box):
            time.sleep(15)  # a bake is compared with a time before it that is as long
    verdict = rolled_back(box, flag, *words)
    found = {metric["name"]: metric for metric in verdict["metrics"]}
    slow = [one for one in found.values() if one["worse"]]
    assert {one["name"] for one in slow} <= {"p95", "ttft p95"}
    assert all(one["candidate"] > one["live"] and one["p_value"] < 0.01 for one in slow)
    assert all(one["blocks"] >= one["blocks_worse"] > one["blocks"] / 2 for one in slow)


@pytest.mark.long
@pytest.mark.parametrize("words", [CANARY, BAKE])
def test_a_release_that_fails(box: Box, tmp_path: Path, flag: Path, words: tuple[str, ...]) -> None:
    """One in twenty responses is an error; the clients' requests show it, without a repeated check."""
    box.host.policy.write_text("[analysis]\nchecks_every = 600\n")
    make_faulty(box, tmp_path, flag, "fails")
    with traffic(box):
        for _ in range(200):
            box.get("/version")
    verdict = rolled_back(box, flag, *words)
    assert "of its" in verdict["reason"]
    assert "requests failed" in verdict["reason"]


def test_a_release_that_answers_wrong(box: Box, checkpoints: dict[str, Path], tmp_path: Path, flag: Path) -> None:
    """Its checks are repeated while it serves clients."""
    body = {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 32,
        "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    right = httpx.post(f"http://{box.listen}/v1/chat/completions", json=body, timeout=60, trust_env=False).json()
    copy = tmp_path / "copy"
    shutil.copytree(checkpoints["1.0.0"], copy)
    check = {"question": "Hello", "answer": right["choices"][0]["message"]["content"].strip(), "name": "greeting"}
    (copy / "checks.json").write_text(json.dumps([check]))
    box.glmctl("release", "remove", "1.1.0")
    box.glmctl("release", "add", str(copy), "--version", "1.1.0")
    box.host.policy.write_text("[analysis]\nchecks_every = 1\n")
    make_faulty(box, tmp_path, flag, "wrong")
    verdict = rolled_back(box, flag, *CANARY)
    assert "check 'greeting' failed" in verdict["reason"]


@pytest.mark.long
def test_a_release_that_warms_up(box: Box, tmp_path: Path, flag: Path) -> None:
    """The first responses of any version are slow, and a busy service has a hundred of them in a second: no verdict.

    Those of the first two seconds count for errors alone; those of the third span too short a time.
    """
    box.host.policy.write_text("[analysis]\nmin_requests = 20\n")
    make_faulty(box, tmp_path, flag, "cold")
    with traffic(box):
        deploy = box.begin("deploy", "1.1.0", "--canary", "50", "--step", "15s", "--bake", "0")
        box.await_phase(deploy, "canary")
        flag.touch()
        out, _ = deploy.communicate(timeout=120)
    assert deploy.returncode == 0, out
    [verdict, *_] = box.json("history")["rollouts"][-1]["analysis"]
    answers = {one["name"]: one["candidate_requests"] for one in verdict["metrics"]}
    assert 100 <= answers["p95"] < answers["errors"] - 20


@pytest.mark.long
def test_without_analysis_only_a_dead_candidate_is_rolled_back(box: Box, tmp_path: Path, flag: Path) -> None:
    """--no-analysis: a release that fails every request and check becomes live."""
    make_faulty(box, tmp_path, flag, "fails always")
    with traffic(box):
        words = ("--canary", "50", "--step", "8s", "--bake", "3s", "--max-p95", "1s")
        deploy = box.begin("deploy", "1.1.0", "--no-analysis", *words)
        box.await_phase(deploy, "canary")
        flag.touch()
        out, _ = deploy.communicate(timeout=120)
    assert deploy.returncode == 0, out
    assert "--max-p95 has no effect with --no-analysis" in out
    record = box.json("history")["rollouts"][-1]
    assert record["receipt"]["failed"] > 0
    assert record["analysis"] == []
