"""Rollback: never to a version that was found worse, and never to a slot that does not serve."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

import httpx
import pytest

from deploy.journal.journal import Journal
from deploy.journal.record import Record
from tests.box import Box, kill, wait_for

QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "temperature": 0}


@pytest.fixture
def strict_box(box: Box) -> Box:
    """A host whose analysis judges 10 responses; a unit that ended is not restarted by systemd."""
    box.host.policy.write_text("[analysis]\nmin_requests = 10\n")
    box.drop_in("[Service]\nRestart=no\n")
    return box


@contextmanager
def asking(box: Box) -> Iterator[list[str]]:
    """Clients that ask until the block has ended; the versions that answered. None may get anything but an answer."""
    answers: list[str] = []
    errors: list[str] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=60) as client:
            while not over.is_set():
                try:
                    answer = client.post("/v1/chat/completions", json=QUESTION)
                    answers.append(answer.raise_for_status().headers["x-model-version"])
                except httpx.HTTPError as error:
                    errors.append(repr(error))
                over.wait(0.02)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    assert errors == []


def bake_worse(box: Box) -> Popen[str]:
    """A deploy of 1.1.0 in its bake, which its first answers will show to be worse."""
    deploy = box.begin("deploy", "1.1.0", "--bake", "600s", "--max-p95", "1ms")
    box.await_phase(deploy, "bake")
    return deploy


def last(box: Box) -> Record:
    found = Journal(box.host).last()
    assert found is not None
    return found


def test_a_condemned_version_does_not_come_back(strict_box: Box) -> None:
    """After a rollback by the analysis, `rollback` is refused with the reason; --force goes there all the same."""
    box = strict_box
    deploy = bake_worse(box)
    with asking(box):
        out, _ = deploy.communicate(timeout=90)
    assert deploy.returncode == 5, out
    stderr = box.glmctl("rollback", expect=3).stderr
    assert "there is nothing to go back to" in stderr
    assert "1.1.0 was found worse: p95" in stderr
    assert "glmctl rollback 1.1.0 --force" in stderr
    assert "1.1.0 was found worse: p95" in box.glmctl("rollback", "1.1.0", expect=3).stderr
    assert box.slots.live == "blue"
    assert box.json("rollback", "1.1.0", "--force")["outcome"] == "done"
    done = box.glmctl("rollback")
    assert "back to 1.0.0, which served before 1.1.0" in done.stderr
    assert box.get("/version").json()["version"] == "1.0.0"


@pytest.mark.parametrize("victim", ["worker", pytest.param("master", marks=pytest.mark.long)])
def test_the_old_slot_is_revived_before_it_is_live_again(strict_box: Box, victim: str) -> None:
    """The old version died in the bake, then the new one is found worse: no client meets a slot that does not serve."""
    box = strict_box
    deploy = bake_worse(box)
    blue = box.generation("blue")
    kill(blue.master if victim == "master" else blue.alive_workers[0].pid)
    with asking(box) as answers:
        out, _ = deploy.communicate(timeout=120)
        seen = len(answers)
        wait_for(lambda: len(answers) > seen + 10 and answers[-1] == "1.0.0")
    assert deploy.returncode == 5, out
    if victim == "master":
        assert "glm@blue.service loads 1.0.0 again" in out
    assert last(box).outcome == "rolled back"
    assert box.show("glm@green.service", "ActiveState") == "inactive"


@pytest.mark.long
def test_a_worse_version_stays_where_the_old_one_cannot_serve(strict_box: Box) -> None:
    """The old version cannot be loaded any more: the new one stays live, and the message and the record say so."""
    box = strict_box
    deploy = bake_worse(box)
    (box.host.releases / "1.0.0").chmod(0o755)
    (box.host.releases / "1.0.0/release.json").unlink()
    kill(box.generation("blue").master)
    with asking(box) as answers:
        out, _ = deploy.communicate(timeout=120)
    assert set(answers) == {"1.1.0"}
    assert deploy.returncode == 1, out
    assert "glmctl: 1.1.0 is to be rolled back: p95" in out
    assert "it stays live, because glm@blue.service does not serve again" in out
    record = last(box)
    assert record.outcome == "done"
    assert "it stays live, because glm@blue.service does not serve again" in (record.reason or "")
    assert box.slots.live == "green"
    assert box.show("glm@blue.service", "ActiveState") == "inactive"
    assert box.generation("green").is_serving
