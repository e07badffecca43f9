"""Kill -9 of anything, in any phase of any strategy: one version serves, and the next command finds a clean host.

Every cell is a rollout under clients. What may be lost is what the killed process had in hand: for each client the one
request, or the one idle connection. pytest prints the table at its end.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from subprocess import Popen

import pytest

from deploy.journal.journal import Journal
from service.contract.generations import current
from tests.box import Box, kill, live_host, wait_for

PHASES = {
    "overlap": ("preflight", "prepare", "start", "verify", "canary", "cutover", "bake", "retire"),
    "swap": ("preflight", "prepare", "vacate", "start", "verify", "cutover", "bake", "retire"),
    "weights": ("preflight", "prepare", "vacate", "verify", "cutover"),
}
WORDS = {
    "overlap": ("--canary", "30", "--step", "1s"),
    "swap": ("--strategy", "swap"),
    "weights": ("--strategy", "weights"),
}
VICTIMS = ("controller", "candidate worker", "candidate master", "old worker", "old master", "power")
BORN = ("start", "verify", "canary", "cutover", "bake", "retire")  # phases in which there is a candidate
LOADED = ("canary", "cutover", "bake", "retire")  # … that clients may have been given to
KEPT, NEW = 3, 1


def cells() -> Iterator[tuple[str, str, str]]:
    """Strategy, victim and phase of every cell in which there is somebody to kill."""
    for strategy, phases in PHASES.items():
        for victim in VICTIMS:
            for phase in phases:
                if victim.startswith("candidate") and (phase not in BORN or strategy == "weights"):
                    continue
                if victim == "old worker" and strategy == "swap" and phases.index(phase) > phases.index("vacate"):
                    continue  # they were sent home
                yield strategy, victim, phase


@pytest.fixture(scope="module")
def host(checkpoints: dict[str, Path]) -> Iterator[Box]:
    """One host for all cells: each begins where the one before ended, whichever version that left live."""
    with live_host(checkpoints) as box:
        yield box


class Clients:
    """Some that keep their connection and one that does not; they go on whatever happens, and count."""

    def __init__(self, box: Box) -> None:
        host, port = box.listen.split(":")
        self._address = host, int(port)
        self.broken: Counter[int] = Counter()
        self.answers: Counter[int] = Counter()
        self.strange: list[int] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(KEPT + NEW)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        connection = HTTPConnection(*self._address, timeout=120)
        while not self._over.is_set():
            try:
                connection.request("GET", "/version")
                answer = connection.getresponse()
                answer.read()
            except (OSError, HTTPException):
                self.broken[number] += 1
                connection.close()
                time.sleep(0.05)
                continue
            self.answers[number] += 1
            if answer.status != 200:
                self.strange.append(answer.status)
            if number >= KEPT:
                connection.close()
            time.sleep(0.005)
        connection.close()

    def all_answered_again(self) -> None:
        """Wait until each client has had ten more answers."""
        before = Counter(self.answers)
        numbers = range(KEPT + NEW)
        wait_for(lambda: all(self.answers[number] >= before[number] + 10 for number in numbers), 60, "answers for all")

    def end(self) -> None:
        """Stop asking."""
        self._over.set()
        for thread in self._threads:
            thread.join(130)


@contextmanager
def clients(box: Box) -> Iterator[Clients]:
    """Clients during the block."""
    crowd = Clients(box)
    try:
        yield crowd
    finally:
        crowd.end()


def strike(box: Box, victim: str, slot: str, deploy: Popen[str]) -> bool:
    """Kill -9 of what serves `slot`, or of the controller, or of all; returns whether there was anybody to kill."""
    if victim in {"controller", "power"}:
        kill(deploy.pid)
        if victim == "power":
            box.sandbox.lose_power()
            box.sandbox.boot()
        return True
    what = victim.split()[1]
    found: list[int] = []

    def is_there() -> bool:
        one = current(box.host.runtime, slot)
        if one is not None:
            found[:] = [one.master] if what == "master" else [worker.pid for worker in one.alive_workers][:1]
        return bool(found) or Journal(box.host).unfinished() == []

    wait_for(is_there, what=victim)
    if found:
        kill(found[0])
    return bool(found)


@pytest.mark.parametrize(("strategy", "victim", "phase"), list(cells()))
def test_one_version_serves_whatever_is_killed(
    host: Box, crashes: dict[tuple[str, str, str], str], strategy: str, victim: str, phase: str
) -> None:
    """Afterwards: one version answers all, the next command is clean, and only the killed process lost anything."""
    box, cell = host, (strategy, victim, phase)
    crashes[cell] = "FAILED"
    live = box.slots.live
    assert live is not None
    version = {"1.0.0": "1.1.0", "1.1.0": "1.0.0"}[box.slots.version(live) or ""]
    other = {"blue": "green", "green": "blue"}
    candidate = live if strategy == "weights" else other[live]
    with clients(box) as crowd:
        crowd.all_answered_again()
        deploy = box.begin("deploy", version, "--bake", "1s", *WORDS[strategy])
        box.await_phase(deploy, phase)
        old = live if strategy == "weights" else other[candidate]
        struck = strike(box, victim, old if victim.startswith("old") else candidate, deploy)
        out, _ = deploy.communicate(timeout=180)
        assert "Traceback" not in out, out
        if victim not in {"controller", "power"}:
            assert deploy.returncode in {0, 3, 4, 5}, out
        told = box.glmctl("status")
        crowd.all_answered_again()
        crowd.all_answered_again()
    assert crowd.strange == []
    assert all(crowd.broken[number] <= allowed(victim, phase) for number in range(KEPT + NEW)), (crowd.broken, out)
    now_live = box.slots.live
    assert {box.get("/version").json()["version"] for _ in range(5)} == {box.slots.version(now_live or "")}
    assert Journal(box.host).unfinished() == []
    assert "interrupted" not in box.glmctl("status").stderr
    idle = other[now_live or ""]
    wait_for(lambda: box.show(f"glm@{idle}.service", "ActiveState") == "inactive", what=f"the end of {idle}")
    record = box.json("history")["rollouts"][-1]
    assert record["outcome"] in {"done", "interrupted", "refused", "not ready", "rolled back"}
    if victim == "controller":
        assert "interrupted in" in told.stderr + (record["reason"] or "") or record["outcome"] == "done"
    lost = sum(crowd.broken.values())
    serves = "new" if box.slots.version(now_live or "") == version else "old"
    crashes[cell] = (serves if struck else f"{serves}*") + (f" -{lost}" if lost else "")


def allowed(victim: str, phase: str) -> int:
    """How many requests or idle connections each client may have had in the killed process."""
    if victim == "power":
        return 1000  # nobody was there to answer
    if victim == "controller" or (victim.startswith("candidate") and phase not in LOADED):
        return 0
    return 2 if victim.endswith("master") else 1  # a master's workers leave with it, and a client may meet both
