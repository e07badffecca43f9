"""A new version that freezes at any moment: clients go back at once, and what is lost with it is counted."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from deploy.rollout.liveness import SILENCE
from tests.box import Box, wait_for

SPIN = """
import os
from service.handover.server import SlotServer

follow_unchanged, spun = SlotServer.follow, False

def follow(self):
    global spun
    if os.path.exists({flag!r}) and not spun:
        spun = True  # the worker that is started in its place does not
        while True:
            pass
    follow_unchanged(self)

SlotServer.follow = follow
"""

HANG = """
import asyncio, os
from service.api.application import Application

call_unchanged = Application.__call__

async def call(self, scope, receive, send):
    while os.path.exists({flag!r}) and scope["type"] == "http":
        await asyncio.sleep(0.05)
    await call_unchanged(self, scope, receive, send)

Application.__call__ = call
"""

SECONDS = 4.5  # for which no client may wait: 1.75 of silence, the way back, 0.5 for a stopped worker to continue
DRAIN = 3.0  # and where the workers run, and answer nothing


@dataclass
class Clients:
    """What clients have met that keep their connections and send a small request every 30 ms."""

    answers: list[tuple[float, str]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@contextmanager
def clients(box: Box, count: int = 8) -> Iterator[Clients]:
    """Run clients until the end of the block."""
    found, over = Clients(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=f"http://{box.listen}", timeout=60, trust_env=False) as client:
            while not over.is_set():
                began = time.monotonic()
                try:
                    response = client.get("/version")
                    found.answers.append((time.monotonic(), response.headers["x-slot"]))
                except httpx.HTTPError as error:
                    found.lost.append(repr(error))
                found.waits.append(time.monotonic() - began)
                over.wait(0.03)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def inject(box: Box, tmp_path: Path, code: str) -> Path:
    """Give the version in green a fault, which begins when the returned file exists."""
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault/sitecustomize.py").write_text(code.format(flag=str(tmp_path / "begin")))
    drop_in = box.host.units / "glm@green.service.d/fault.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nEnvironment=PYTHONPATH={tmp_path / 'fault'}\n")
    box.systemctl("daemon-reload")
    return tmp_path / "begin"


def stop_workers(box: Box, slot: str = "green", number: int = signal.SIGSTOP) -> None:
    for worker in box.generation(slot).alive_workers:
        os.kill(worker.pid, number)


def stop_all(box: Box) -> None:
    os.kill(box.generation("green").master, signal.SIGSTOP)
    stop_workers(box)


def pre_cutover(box: Box, tmp_path: Path) -> None:
    """A hook that stops the workers of green right before the rename of `live`."""
    hook = tmp_path / "hook"
    states = f"{box.host.runtime}/green/*/[0-9]*.json"
    hook.write_text(f"#!/bin/sh\nfor state in {states}; do pid=${{state##*/}}; kill -STOP ${{pid%.json}}; done\n")
    hook.chmod(0o755)
    box.host.policy.write_text(f'[hooks]\npre_cutover = ["{hook}"]\n')


FAULTS = ("workers", "master and workers", "spins", "hangs")
MOMENTS = ("bake", "canary", "a hook in the bake")
FEW = {("workers", "a hook in the bake"), ("hangs", "canary")}
"""A stop from outside and one of its own; the other pairs are long proofs."""


@pytest.mark.parametrize(
    ("fault", "moment"),
    [pytest.param(*pair, marks=() if pair in FEW else pytest.mark.long) for pair in itertools.product(FAULTS, MOMENTS)],
)
def test_clients_of_a_frozen_version_go_back(box: Box, tmp_path: Path, fault: str, moment: str) -> None:
    """Within seconds the old version answers all clients, the exit code is 5, and lost requests are in the receipt.

    A stopped process loses nothing: it is continued, and hands its connections over.
    """
    begin: dict[str, Callable[[], None]] = {
        "workers": lambda: stop_workers(box),
        "master and workers": lambda: stop_all(box),
    }
    if code := {"spins": SPIN, "hangs": HANG}.get(fault):
        begin[fault] = inject(box, tmp_path, code).touch
    if moment == "a hook in the bake":
        box.host.policy.write_text('[hooks]\npost_cutover = ["sleep 20"]\n')
    words = {"canary": ("--canary", "50", "--step", "60s")}.get(moment, ("--bake", "60s"))
    with clients(box) as found:
        deploy = box.begin("deploy", "1.1.0", *words)
        box.await_phase(deploy, "canary" if moment == "canary" else "bake")
        wait_for(lambda: found.answers[-1][1] == "green", what="an answer of the new version")
        time.sleep(0.3)
        began = time.monotonic()
        begin[fault]()
        wait_for(lambda: box.slots.live == "blue" and not (box.host.runtime / "canary").exists(), 20, "the way back")
        seconds = time.monotonic() - began
        out, _ = deploy.communicate(timeout=60)
        time.sleep(0.2)
    assert deploy.returncode == 5, out
    assert seconds < 3
    assert max(found.waits) < SECONDS + DRAIN * (fault == "hangs"), sorted(found.waits)[-8:]
    record = box.json("history")["rollouts"][-1]
    assert record["outcome"] == "rolled back"
    assert "green is frozen" in record["reason"]
    if fault == "spins":
        assert record["receipt"]["lost"] >= len(found.lost) - 2, (record["receipt"], found.lost)
    elif fault == "hangs":
        assert record["receipt"]["lost"] == record["receipt"]["cut"] == len(found.lost)
    else:
        assert found.lost == []
    assert box.get("/version").json()["version"] == "1.0.0"
    assert box.show("glm@green.service", "ActiveState") == "inactive"
    assert found.answers[-1][1] == "blue"


def test_one_frozen_worker_of_two_is_enough(box: Box) -> None:
    """The other one answers the controller's question; the clients of the frozen one wait all the same."""
    box.configure(workers=2)
    with clients(box) as found:
        deploy = box.begin("deploy", "1.1.0", "--bake", "60s")
        box.await_phase(deploy, "bake")
        time.sleep(0.3)
        os.kill(box.generation("green").alive_workers[0].pid, signal.SIGSTOP)
        out, _ = deploy.communicate(timeout=60)
        time.sleep(0.2)
    assert deploy.returncode == 5, out
    assert max(found.waits) < SECONDS
    assert found.lost == []


@pytest.mark.long
@pytest.mark.model
def test_a_busy_version_is_not_frozen(box: Box) -> None:
    """Long prompts and many tokens keep the engine busy for longer than a frozen version may be silent."""
    over, waits = threading.Event(), []
    body = {"messages": [{"role": "user", "content": "lorem ipsum " * 2000}], "max_tokens": 64}

    def ask() -> None:
        with httpx.Client(base_url=f"http://{box.listen}", timeout=120, trust_env=False) as client:
            while not over.is_set():
                began = time.monotonic()
                assert client.post("/v1/chat/completions", json=body).status_code == 200
                waits.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        box.glmctl("deploy", "1.1.0", "--canary", "50", "--step", "4s", "--bake", "4s", "--no-analysis", timeout=300)
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
    assert max(waits) > SILENCE


def test_a_version_that_freezes_right_before_the_cutover(box: Box, tmp_path: Path) -> None:
    """What is handed to it waits in the kernel, and is handed back; no client waits for the rename to be noticed."""
    pre_cutover(box, tmp_path)
    with clients(box) as found:
        out = box.glmctl("deploy", "1.1.0", "--bake", "60s", expect=5).stderr
        time.sleep(0.2)
    assert "green is frozen" in out
    assert max(found.waits) < SECONDS
    assert found.lost == []
    assert box.json("history")["rollouts"][-1]["receipt"]["lost"] == 0


@pytest.mark.long
def test_the_operator_rolls_a_frozen_version_back(box: Box) -> None:
    """Without a bake, `rollback` moves its clients too: those that it holds follow when it is continued."""
    box.glmctl("deploy", "1.1.0", "--bake", "0", "--keep-warm", "10m")
    with clients(box) as found:
        wait_for(lambda: len(found.answers) > 20, what="answers")
        stop_workers(box)
        began = time.monotonic()
        box.glmctl("rollback")
        assert time.monotonic() - began < 10
        wait_for(lambda: len(found.answers) > 60, what="answers")
    assert found.lost == []
    assert max(found.waits) < 10
    assert found.answers[-1][1] == "blue"


def test_a_rollback_to_a_frozen_version_is_refused(box: Box) -> None:
    """The version that serves stays live, and its clients notice nothing."""
    box.glmctl("deploy", "1.1.0", "--bake", "0", "--keep-warm", "10m")
    stop_workers(box, "blue")
    with clients(box) as found:
        assert "blue is frozen" in box.glmctl("rollback", expect=4).stderr
    assert box.slots.live == "green"
    assert (found.lost, max(found.waits) < 2) == ([], True)
    stop_workers(box, "blue", signal.SIGCONT)


@pytest.mark.long
def test_a_swap_leaves_a_frozen_version(box: Box) -> None:
    """The old version freezes, and holds the memory that the new one needs: nobody waits until the drain ends."""
    with clients(box, 2):
        time.sleep(0.3)
        deploy = box.begin("deploy", "1.1.0", "--strategy", "swap", "--bake", "0")
        began = time.monotonic()
        box.await_phase(deploy, "vacate")
        stop_workers(box, "blue")
        out, _ = deploy.communicate(timeout=100)
    assert deploy.returncode in {0, 6}, out
    assert time.monotonic() - began < 30
