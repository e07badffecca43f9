"""Kill -9 of any process, in any phase of any strategy: one version serves, and `resume` ends the rollout.

`make test` runs REPRESENTATIVE: each victim under each strategy, and each phase. `make test-all` runs every cell.

Every cell is a rollout under clients. What may be lost is what the killed process had in hand: for each client the one
request, or the one idle connection. pytest prints the table at its end.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
STARTED = ("start", "verify", "canary", "cutover", "bake", "retire")  # phases in which there is a candidate
LOADED = ("canary", "cutover", "bake", "retire")  # phases in which it may have clients
KEPT, NEW = 3, 1
PAUSE = 0.02  # seconds between two requests of a client; they are not to take the cores from the rollout
REPRESENTATIVE = {
    ("overlap", "controller", "prepare"),
    ("overlap", "controller", "cutover"),
    ("overlap", "candidate worker", "start"),
    ("overlap", "candidate master", "canary"),
    ("overlap", "old worker", "bake"),
    ("overlap", "old master", "preflight"),
    ("overlap", "power", "verify"),
    ("overlap", "power", "retire"),
    ("swap", "controller", "vacate"),
    ("swap", "controller", "retire"),
    ("swap", "candidate worker", "verify"),
    ("swap", "candidate master", "bake"),
    ("swap", "old worker", "preflight"),
    ("swap", "old master", "start"),
    ("swap", "power", "prepare"),
    ("swap", "power", "cutover"),
    ("weights", "controller", "preflight"),
    ("weights", "controller", "vacate"),
    ("weights", "old worker", "verify"),
    ("weights", "old master", "prepare"),
    ("weights", "power", "cutover"),
}


VACANT = {("swap", "controller", phase) for phase in ("start", "verify", "cutover")}
"""Cells in which no version is loaded in the live slot, and clients wait until the rollout is resumed: by a timer after
15 s (`test_swap.py`), here by `resume`."""


def cells() -> Iterator[tuple[str, str, str]]:
    """Yield strategy, victim and phase of every cell in which the victim exists."""
    for strategy, phases in PHASES.items():
        for victim in VICTIMS:
            for phase in phases:
                if victim.startswith("candidate") and (phase not in STARTED or strategy == "weights"):
                    continue
                if victim == "old worker" and strategy == "swap" and phases.index(phase) > phases.index("vacate"):
                    continue  # a swap stopped them
                yield strategy, victim, phase


@pytest.fixture(scope="module")
def host(checkpoints: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Box]:
    """One host for all cells, each of which begins with what the one before left live; with --long it has the model."""
    with live_host(checkpoints, "model" if request.config.getoption("--long") else "dummy") as box:
        yield box


class Clients:
    """Clients, three with a kept connection, that continue after an error and count responses and errors."""

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
            time.sleep(PAUSE)
        connection.close()

    def all_answered_again(self) -> None:
        """Wait until each client has had ten more responses."""
        before = Counter(self.answers)
        numbers = range(KEPT + NEW)
        wait_for(lambda: all(self.answers[number] >= before[number] + 10 for number in numbers), 60, "answers for all")

    def end(self) -> None:
        """Stop the clients."""
        self._over.set()
        for thread in self._threads:
            thread.join(130)


@contextmanager
def clients(box: Box) -> Iterator[Clients]:
    """Run clients during the block."""
    crowd = Clients(box)
    try:
        yield crowd
    finally:
        crowd.end()


def strike(box: Box, victim: str, slot: str, deploy: Popen[str]) -> bool:
    """Kill -9 of a process of `slot`, of the controller, or of all; returns whether the victim existed."""
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


def test_the_representative_cells_meet_every_victim_and_phase() -> None:
    """Under each strategy, every victim and every phase is in the pass of `make test`."""
    assert REPRESENTATIVE.issubset(cells())
    for strategy, phases in PHASES.items():
        chosen = [cell[1:] for cell in REPRESENTATIVE if cell[0] == strategy]
        assert {victim for victim, _ in chosen} == {cell[1] for cell in cells() if cell[0] == strategy}
        assert {phase for _, phase in chosen} == set(phases)


@pytest.mark.parametrize(
    ("strategy", "victim", "phase"),
    [pytest.param(*cell, marks=() if cell in REPRESENTATIVE else pytest.mark.long) for cell in cells()],
)
def test_one_version_serves_whatever_is_killed(
    host: Box, record_property: Callable[[str, object], None], strategy: str, victim: str, phase: str
) -> None:
    """One version answers afterwards, `resume` ends the rollout, and only the killed process lost requests."""
    box, cell = host, (strategy, victim, phase)
    record_property("crash", (cell, "FAILED"))
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
        unfinished = Journal(box.host).unfinished()
        told = box.glmctl("status").stderr
        if cell not in VACANT:
            crowd.all_answered_again()
        assert Journal(box.host).unfinished() == unfinished  # reading changed nothing
        assert ("interrupted" in told) == bool(unfinished)
        done = box.glmctl("resume", expect=None)
        assert done.returncode in {0, 5}, done.stderr
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
    assert box.json("status")["slots"][now_live]["version"] == box.slots.version(now_live or "")
    serves = "new" if box.slots.version(now_live or "") == version else "old"
    assert (record["outcome"] == "done") == (serves == "new"), record
    if victim == "controller":
        assert f"deploy of {version} was interrupted in" in told
        assert f"deploy of {version} was interrupted in" in done.stdout
        assert record["reason"].startswith("interrupted in")
    elif victim != "power":
        assert (deploy.returncode == 0) == (serves == "new"), out
    lost = sum(crowd.broken.values())
    record_property("crash", (cell, (serves if struck else f"{serves}*") + (f" -{lost}" if lost else "")))


def allowed(victim: str, phase: str) -> int:
    """Return how many requests or idle connections each client may lose with the killed process."""
    if victim == "power":
        return 1000
    if victim == "controller" or (victim.startswith("candidate") and phase not in LOADED):
        return 0
    return 2 if victim.endswith("master") else 1  # a client may be handed to a second worker that ends with the master
