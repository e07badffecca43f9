"""Readiness: a candidate gets no request before it is live, and one that does not become ready changes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.box import Box, kill, wait_for

AddRelease = Callable[..., None]


@pytest.fixture
def box(stocked_box: Box) -> Box:
    """A host on which 1.0.0 is live, in blue, without a model; what starts from then on has the engine of the test."""
    engine, stocked_box.engine = stocked_box.engine, "dummy"
    stocked_box.configure(threads=1)
    stocked_box.glmctl("deploy", "1.0.0")
    stocked_box.engine = engine
    stocked_box.configure(threads=1)
    return stocked_box


@pytest.mark.model
def test_start_returns_when_ready_and_candidate_gets_no_request(box: Box) -> None:
    """`systemctl start glm@green` returns when green is ready; green accepts no request during and after it."""
    box.slots.point("green", "releases/1.1.0")
    with _requests(box) as answered_by:
        assert box.systemctl("start", "glm@green.service").returncode == 0
        green = box.generation("green")
        assert green.ready
        assert all(worker.phase == "ready" for worker in green.workers)
        wait_for(lambda: len(answered_by) > 50)
    assert set(answered_by) == {"blue"}
    assert all((worker.ledger.accepted, worker.ledger.adopted) == (0, 0) for worker in box.generation("green").workers)
    assert box.generation("green").gate == "closed"


@pytest.mark.long
@pytest.mark.model
def test_status_shows_the_progress_of_the_load(box: Box) -> None:
    """STATUS= has the version and the progress in percent while the unit is activating."""
    box.slots.point("green", "releases/1.1.0")
    box.systemctl("start", "--no-block", "glm@green.service")
    texts = set()

    def loading() -> bool:
        if box.show("glm@green.service", "ActiveState") == "activating":
            texts.add(box.show("glm@green.service", "StatusText"))
            return False
        return True

    wait_for(loading, 60)
    assert any("1.1.0: " in text and "%" in text for text in texts), texts


@pytest.mark.model
def test_parts_of_the_load_are_reported(stocked_box: Box) -> None:
    """Status, history and /metrics have the seconds of imports, reading, building, warming up and checking."""
    box = stocked_box
    box.glmctl("deploy", "1.0.0")
    load = box.json("status")["slots"]["blue"]["load"]
    assert list(load) == ["imports", "reading", "building", "warming up", "checking"]
    assert load["imports"] > load["reading"] >= 0
    record = box.json("history")["rollouts"][0]
    start, verify = (
        next(step["at"] for step in record["steps"] if step["phase"] == name) for name in ("start", "verify")
    )
    waited = (datetime.fromisoformat(verify) - datetime.fromisoformat(start)).total_seconds()
    assert record["load"] == load
    assert 0.5 * waited < sum(load.values()) < waited
    metrics = box.get("/metrics").text
    reported = re.findall(r'glm_model_load_part_seconds\{.*part="(.*?)".*\} (\S+)', metrics)
    assert {part: float(seconds) for part, seconds in reported} == load
    assert "blue was loaded in" in box.glmctl("status").stdout


def test_main_pid_is_the_master(box: Box) -> None:
    """The unit's main process is the master of the ready generation."""
    assert int(box.show("glm@blue.service", "MainPID")) == box.generation("blue").master


@pytest.mark.model
def test_failed_check_exits_with_4(box: Box, tmp_path: Path, add_release: AddRelease) -> None:
    """A release that fails a check does not become ready: exit code 4, check and expectation named, live unchanged."""
    checks = tmp_path / "checks.json"
    checks.write_text(json.dumps([{"name": "knows red", "question": "Which colour?", "answer": "never said"}]))
    add_release(box, "2.0.0", "--checks", str(checks))
    error = _deploy_fails(box, "2.0.0", 4)
    assert "knows red" in error
    assert "never said" in error


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "contents", "reason"),
    [
        pytest.param("config.json", "{", "config.json", marks=pytest.mark.long),
        ("config.json", '{"model_type": "bert", "architectures": ["BertModel"]}', "bert"),
        pytest.param("tokenizer.json", "nothing", "tokenizer", marks=pytest.mark.long),
        pytest.param("chat_template.jinja", "{% for", "template", marks=pytest.mark.long),
    ],
)
def test_checkpoint_that_cannot_be_loaded_exits_with_4(
    box: Box, add_release: AddRelease, name: str, contents: str, reason: str
) -> None:
    """A checkpoint that cannot be loaded: exit code 4, the file named, live unchanged, no restart."""
    add_release(box, "2.0.0", change=lambda path: (path / name).write_text(contents))
    assert reason in _deploy_fails(box, "2.0.0", 4).lower()


@pytest.mark.model
def test_load_that_hangs_exits_with_4(box: Box) -> None:
    """A load without progress ends at the unit's start timeout, which is extended by progress alone."""
    box.drop_in("[Service]\nTimeoutStartSec=15\nTimeoutStopSec=2\n")
    box.configure(threads=1, load_stall=4)
    deploy = box.begin("deploy", "1.1.0")
    box.await_phase(deploy, "start")
    _wait_for_worker(box)
    for pid in (box.generation("green").master, box.generation("green").alive_workers[0].pid):
        os.kill(pid, signal.SIGSTOP)
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 4, out
    assert "no progress" in out
    _assert_unchanged(box)


def test_changed_release_is_refused(box: Box, add_release: AddRelease) -> None:
    """A release whose file changed after it was added is not made live, and the file is named.

    Its digest is compared beside the load (exit code 4), its size before (3).
    """
    add_release(box, "2.0.0")
    weights = box.host.releases / "2.0.0/model/model.safetensors"
    weights.chmod(0o644)
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.write_bytes(contents)
    assert "model.safetensors" in _deploy_fails(box, "2.0.0", 4)
    weights.write_bytes(contents[:-100])
    assert "its size in bytes is" in _deploy_fails(box, "2.0.0", 3)


def test_truncated_checkpoint_is_refused(box: Box, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """`release add` refuses a safetensors file that is shorter than its header states."""
    shutil.copytree(checkpoints["1.1.0"], tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in box.glmctl("release", "add", str(tmp_path / "cut"), expect=3).stderr


@pytest.mark.model
def test_worker_killed_during_the_load_is_replaced(box: Box) -> None:
    """After SIGKILL of the candidate's worker during its load the master starts another, and the deploy succeeds."""
    deploy = box.begin("deploy", "1.1.0", "--bake", "0")
    box.await_phase(deploy, "start")
    _wait_for_worker(box)
    kill(box.generation("green").alive_workers[0].pid)
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 0, out
    assert box.get("/version").json()["version"] == "1.1.0"


@pytest.mark.long
@pytest.mark.model
def test_master_killed_during_the_load_exits_with_4(box: Box) -> None:
    """After SIGKILL of the candidate's master during its load the deploy ends with exit code 4, live unchanged."""
    deploy = box.begin("deploy", "1.1.0")
    box.await_phase(deploy, "start")
    _wait_for_worker(box)
    kill(box.generation("green").master)
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 4, out
    assert "killed" in out
    _assert_unchanged(box)


def _deploy_fails(box: Box, version: str, code: int) -> str:
    """Deploy, expecting this exit code and an unchanged host; returns stderr."""
    done = box.glmctl("deploy", version, expect=code)
    if code == 4:
        assert len(re.findall("did not become ready|is damaged", done.stderr)) == 1
    _assert_unchanged(box)
    assert box.json("history")["rollouts"][-1]["outcome"] in {"not ready", "refused"}
    return done.stderr


def _wait_for_worker(box: Box) -> None:
    wait_for(lambda: any(generation.alive_workers for generation in box.generations("green")), what="a worker")


def _assert_unchanged(box: Box) -> None:
    """Assert that blue serves 1.0.0, and that green is empty and stopped."""
    assert box.slots.live == "blue"
    assert box.get("/version").json()["version"] == "1.0.0"
    assert box.slots.target("green") is None
    assert box.show("glm@green.service", "ActiveState") == "inactive"
    assert box.show("glm@green.service", "SubState") == "dead"
    assert box.show("glm.socket", "ActiveState") == "active"


@contextmanager
def _requests(box: Box) -> Iterator[list[str]]:
    """Send requests, each on a new connection, until the block ends; yields the slots that answered."""
    answered_by: list[str] = []
    stop = threading.Event()

    def send_requests() -> None:
        while not stop.wait(0.02):
            answered_by.append(box.get("/version").headers["x-slot"])

    thread = threading.Thread(target=send_requests)
    thread.start()
    try:
        yield answered_by
    finally:
        stop.set()
        thread.join()
