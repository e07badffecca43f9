"""The swap by sleeping: the old version's workers stay, with the weights in the host's memory, and wake up to go back.

The engine without a model stands in for vLLM on a GPU: what sleeps is the worker, its connections, and its order.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from deploy.releases.store import Releases
from service.contract.sleep_order import SleepOrder
from service.contract.slots import generation_directory
from service.contract.worker_state import WorkerState
from tests.box import Box, kill, wait_for
from tests.test_swap import IDLE, crowd
from tests.test_zero_loss import assert_nothing_lost, assert_receipts_add_up

ENGINE = {"engine": "vllm", "vllm": {"enable_sleep_mode": True}}
SWAP = ("deploy", "1.1.0", "--strategy", "swap", "--bake")


@pytest.fixture
def sleepy_box(empty_box: Box, checkpoints: dict[str, Path], tmp_path: Path) -> Box:
    """A host on which 1.0.0 is live, whose engine can sleep; 1.1.0 has another one."""
    settings = tmp_path / "engine.json"
    settings.write_text(json.dumps(ENGINE))
    Releases(empty_box.host).add(checkpoints["1.0.0"], version="1.0.0", engine=settings)
    Releases(empty_box.host).add(checkpoints["1.1.0"], version="1.1.0")
    empty_box.glmctl("deploy", "1.0.0")
    return empty_box


def worker(box: Box, slot: str = "blue") -> WorkerState:
    (found,) = box.generation(slot).alive_workers
    return found


def sleepers(box: Box) -> list[int]:
    return [one.pid for one in box.generation("blue").alive_workers if one.phase == "asleep"]


def order(box: Box) -> SleepOrder:
    return SleepOrder(generation_directory(box.host.runtime, "blue", box.generation("blue").generation))


def unloadable(box: Box, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Add 2.0.0, which does not pass its checks."""
    checks = tmp_path / "checks.json"
    checks.write_text('[{"question": "Hello", "answer": "certainly not a word of the dummy"}]')
    Releases(box.host).add(checkpoints["1.1.0"], version="2.0.0", checks=checks)


def test_a_swap_puts_the_old_version_to_sleep_and_ends_it(sleepy_box: Box) -> None:
    """While the new version loads and bakes its worker sleeps; afterwards its unit is stopped. Clients wait."""
    box, before = sleepy_box, worker(sleepy_box)
    assert before.can_sleep
    with crowd(box, "1.1.0") as clients:
        wait_for(lambda: len(clients.statuses) > 20)
        deploy = box.begin(*SWAP, "2s")
        box.await_phase(deploy, "start")
        assert (worker(box).pid, worker(box).phase, worker(box).gate) == (before.pid, "asleep", "closed")
        assert box.json("status")["slots"]["blue"]["state"] == "vacant"
        box.await_phase(deploy, "bake")
        assert (worker(box).pid, worker(box).phase) == (before.pid, "asleep")
        out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 0, out
    assert "blue sleeps" in out
    assert {version for _, version in clients.statuses} == {"1.0.0", "1.1.0"}
    assert box.show("glm@blue.service", "ActiveState") == "inactive"
    receipt = box.json("history")["rollouts"][-1]["receipt"]
    assert (receipt["lost"], receipt["adds_up"]) == (0, True)


def test_a_rollback_while_it_bakes_wakes_the_old_version_up(sleepy_box: Box) -> None:
    """By the same worker, without a load."""
    box, before = sleepy_box, worker(sleepy_box)
    with crowd(box, "1.0.0"):
        deploy = box.begin(*SWAP, "600s")
        box.await_phase(deploy, "bake")
        record = box.json("rollback")
        out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 5, out
    assert "glm@blue.service wakes 1.0.0 up" in out
    assert record["outcome"] == "rolled back"
    assert (record["receipt"]["lost"], record["receipt"]["adds_up"]) == (0, True)
    assert (worker(box).pid, worker(box).phase, worker(box).gate) == (before.pid, "ready", "open")
    assert not order(box).is_given
    assert box.show("glm@green.service", "ActiveState") == "inactive"


def test_a_version_that_fails_its_checks_wakes_the_old_one_up(
    sleepy_box: Box, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Every response is 200 and of the old version."""
    box, before = sleepy_box, worker(sleepy_box)
    unloadable(box, checkpoints, tmp_path)
    with crowd(box, "1.0.0") as clients:
        wait_for(lambda: len(clients.statuses) > 20)
        box.glmctl("deploy", "2.0.0", "--strategy", "swap", expect=4)
    assert {version for _, version in clients.statuses} == {"1.0.0"}
    assert (worker(box).pid, worker(box).phase) == (before.pid, "ready")


@pytest.mark.parametrize("victim", ["worker", "master"])
def test_a_sleeper_that_is_killed_is_loaded_again_by_a_rollback(sleepy_box: Box, victim: str) -> None:
    """The worker that takes its place waits with its load until the swap is over."""
    box, before = sleepy_box, worker(sleepy_box)
    with crowd(box, "1.0.0"):
        deploy = box.begin(*SWAP, "600s")
        box.await_phase(deploy, "bake")
        wait_for(lambda: box.generation("green").connections >= IDLE)  # else the sleeper may be passing them on
        kill(before.pid if victim == "worker" else box.generation("blue").master)
        if victim == "worker":
            wait_for(lambda: sleepers(box) and sleepers(box) != [before.pid])
        box.glmctl("rollback")
        out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 5, out
    assert worker(box).phase == "ready"
    receipt = box.json("history")["rollouts"][-1]["receipt"]
    assert (receipt["lost"], receipt["adds_up"]) == (0, True)


@pytest.mark.parametrize("phase", ["vacate", "start", "bake"])
def test_the_swap_of_a_killed_controller_is_undone_or_completed(sleepy_box: Box, phase: str) -> None:
    """Kill -9 of glmctl: `resume`, which a timer runs otherwise, wakes the old version up, or retires it."""
    box = sleepy_box
    with crowd(box, "1.1.0" if phase == "bake" else "1.0.0"):
        deploy = box.begin(*SWAP, "1s" if phase == "bake" else "600s")
        box.await_phase(deploy, phase)
        kill(deploy.pid)
        deploy.communicate(timeout=60)
        box.glmctl("resume")
    if phase == "bake":
        assert box.show("glm@blue.service", "ActiveState") == "inactive"
        return
    assert (worker(box).phase, worker(box).gate) == ("ready", "open")
    assert not order(box).is_given


def test_requests_that_outlast_the_drain_are_cut_as_without_sleep(sleepy_box: Box) -> None:
    """The workers are stopped then; the receipt counts what they cut, and a rollback would load."""
    box = sleepy_box
    host, port = box.listen.split(":")
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50_000, "stream": True}).encode()
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        client.sendall(b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(12) == b"HTTP/1.1 200"
        box.glmctl(*SWAP, "0", "--drain", "500ms", expect=6)
    receipt = box.json("history")["rollouts"][-1]["receipt"]
    assert (receipt["cut"], receipt["lost"], receipt["adds_up"]) == (1, 1, True)


@pytest.mark.long
@pytest.mark.alone
def test_swaps_by_sleeping_lose_nothing_under_load(sleepy_box: Box, tmp_path: Path) -> None:
    """With two workers, there and back."""
    box = sleepy_box
    box.configure(threads=1, workers=2)
    box.glmctl("reload")
    with box.load(tmp_path) as load:
        for _ in range(3):
            deploy = box.begin(*SWAP, "600s")
            box.await_phase(deploy, "bake")
            box.glmctl("rollback")
            out, _ = deploy.communicate(timeout=60)
            assert deploy.returncode == 5, out
            assert "wakes 1.0.0 up" in out
        report = load.stop()
    assert_nothing_lost(box, report)
    assert_receipts_add_up(box)
    assert set(report.by_version) == {"1.0.0", "1.1.0"}
