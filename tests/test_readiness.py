"""Not ready, no traffic; and a candidate that cannot become ready leaves the live slot alone."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.box import Box, kill, wait_for

AddRelease = Callable[..., None]


@pytest.mark.model
def test_start_returns_after_ready_and_nothing_reaches_the_candidate_before(box: Box) -> None:
    """`systemctl start glm@green` returns when green is ready; not one connection reaches it, then or before."""
    box.slots.point("green", "releases/1.1.0")
    with _asking(box) as answered_by:
        assert box.systemctl("start", "glm@green.service").returncode == 0
        green = box.generation("green")
        assert green.ready
        assert all(worker.phase == "ready" for worker in green.workers)
        wait_for(lambda: len(answered_by) > 50)
    assert set(answered_by) == {"blue"}
    assert all((worker.ledger.accepted, worker.ledger.adopted) == (0, 0) for worker in box.generation("green").workers)
    assert box.generation("green").gate == "closed"


@pytest.mark.model
def test_the_load_is_told_while_it_lasts(box: Box) -> None:
    """STATUS says how far the load is, while the unit is still activating."""
    box.slots.point("green", "releases/1.1.0")
    box.systemctl("start", "--no-block", "glm@green.service")
    said = set()

    def loading() -> bool:
        if box.show("glm@green.service", "ActiveState") == "activating":
            said.add(box.show("glm@green.service", "StatusText"))
            return False
        return True

    wait_for(loading, 60)
    assert any("1.1.0: " in text and "%" in text for text in said), said


def test_main_pid_is_the_master(box: Box) -> None:
    """READY comes with the MAINPID of the generation's master."""
    assert int(box.show("glm@blue.service", "MainPID")) == box.generation("blue").master


@pytest.mark.model
def test_a_candidate_that_fails_its_checks_never_becomes_ready(
    box: Box, tmp_path: Path, add_release: AddRelease
) -> None:
    """A failed check: exit code 4, the reason in plain words, in STATUS too, and live untouched."""
    checks = tmp_path / "checks.json"
    checks.write_text(json.dumps([{"name": "knows red", "question": "Which colour?", "answer": "never said"}]))
    add_release(box, "2.0.0", "--checks", str(checks))
    said = _deploy_fails(box, "2.0.0", 4)
    assert "knows red" in said
    assert "never said" in said


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "contents", "reason"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", '{"model_type": "bert", "architectures": ["BertModel"]}', "bert"),
        ("tokenizer.json", "nothing", "tokenizer"),
        ("chat_template.jinja", "{% for", "template"),
    ],
)
def test_a_candidate_that_crashes_ends_with_4(
    box: Box, add_release: AddRelease, name: str, contents: str, reason: str
) -> None:
    """A checkpoint that cannot be loaded: exit code 4, the file named, live untouched, nothing loops."""
    add_release(box, "2.0.0", change=lambda path: (path / name).write_text(contents))
    assert reason in _deploy_fails(box, "2.0.0", 4).lower()


@pytest.mark.model
def test_a_candidate_that_hangs_ends_with_4(box: Box) -> None:
    """A load that stands still runs into the unit's start time-out, however long it might go on asking for more."""
    box.drop_in("[Service]\nTimeoutStartSec=4\nTimeoutStopSec=2\n")
    box.configure(threads=1, load_stall=4)
    deploy = box.begin("deploy", "1.1.0")
    box.await_phase(deploy, "start")
    wait_for(lambda: [one for one in box.generations("green") if one.alive_workers])
    for pid in (box.generation("green").master, box.generation("green").alive_workers[0].pid):
        os.kill(pid, signal.SIGSTOP)
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 4, out
    assert "no progress" in out
    _assert_untouched(box)


def test_a_tampered_release_is_refused_before_anything_is_touched(box: Box, add_release: AddRelease) -> None:
    """A file that changed after it was added: exit code 3, named, live untouched."""
    add_release(box, "2.0.0")
    weights = box.host.releases / "2.0.0/model/model.safetensors"
    weights.chmod(0o644)
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.write_bytes(contents)
    assert "model.safetensors" in _deploy_fails(box, "2.0.0", 3)
    weights.write_bytes(contents[:-100])
    assert "bytes instead of" in _deploy_fails(box, "2.0.0", 3)


def test_a_truncated_checkpoint_is_refused_by_name(box: Box, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A safetensors file shorter than its own header says is refused when it is added."""
    import shutil

    shutil.copytree(checkpoints["1.1.0"], tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in box.glmctl("release", "add", str(tmp_path / "cut"), expect=3).stderr


@pytest.mark.model
def test_a_worker_killed_while_it_loads_is_replaced(box: Box) -> None:
    """Kill -9 of the candidate's worker during its load: the master begins another, and the deploy goes through."""
    deploy = box.begin("deploy", "1.1.0", "--bake", "0")
    box.await_phase(deploy, "start")
    wait_for(lambda: [one for one in box.generations("green") if one.alive_workers])
    kill(box.generation("green").alive_workers[0].pid)
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 0, out
    assert box.get("/version").json()["version"] == "1.1.0"


@pytest.mark.model
def test_a_master_killed_while_it_loads_ends_with_4(box: Box) -> None:
    """Kill -9 of the candidate's master during its load: exit code 4, live untouched."""
    deploy = box.begin("deploy", "1.1.0")
    box.await_phase(deploy, "start")
    wait_for(lambda: [one for one in box.generations("green") if one.alive_workers])
    kill(box.generation("green").master)
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 4, out
    assert "killed" in out
    _assert_untouched(box)


def _deploy_fails(box: Box, version: str, code: int) -> str:
    done = box.glmctl("deploy", version, expect=code)
    if code == 4:
        assert done.stderr.count("did not become ready") == 1
    _assert_untouched(box)
    assert box.json("history")["rollouts"][-1]["outcome"] in {"not ready", "refused"}
    return done.stderr


def _assert_untouched(box: Box) -> None:
    assert box.slots.live == "blue"
    assert box.get("/version").json()["version"] == "1.0.0"
    assert box.slots.target("green") is None
    assert box.show("glm@green.service", "ActiveState") == "inactive"
    assert box.show("glm@green.service", "SubState") == "dead"
    assert box.show("glm.socket", "ActiveState") == "active"


@contextmanager
def _asking(box: Box) -> Iterator[list[str]]:
    """Clients that open a new connection for every request, until the block ends."""
    answered_by: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.02):
            answered_by.append(box.get("/version").headers["x-slot"])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answered_by
    finally:
        stop.set()
        thread.join()
