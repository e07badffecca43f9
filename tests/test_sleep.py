"""The parts of a swap by sleeping: the order, the worker's server, and the controller's decision."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.rollout import memory
from deploy.rollout.memory import NoRoom
from deploy.rollout.plan import Plan, Rollout
from deploy.rollout.sleep import fall_asleep, wake_up
from service.contract.generations import Generation
from service.contract.processes import own_start_ticks
from service.contract.sleep_order import SleepOrder
from service.contract.worker_state import Phase, WorkerState, WorkerStateFile
from tests.rollout_fixtures import Moments, ScriptedContext, directories
from tests.server_fixtures import GET, SLOW, Client, running_host, until


def test_the_order_is_a_file(tmp_path: Path) -> None:
    """Nothing else of that name is one, and it can be given and withdrawn twice."""
    order = SleepOrder(tmp_path)
    order.withdraw()
    for _ in range(2):
        order.give()
        assert order.is_given
    for _ in range(2):
        order.withdraw()
        assert not order.is_given
    order.path.symlink_to(__file__)
    assert not order.is_given
    order.withdraw()
    assert not order.path.is_symlink()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_server_that_has_vacated_leaves_its_clients_in_the_backlogs(tmp_path: Path, anyio_backend: str) -> None:
    """It finishes what runs, takes nothing, and once another slot is live passes on what waits; or serves again."""
    del anyio_backend
    async with running_host(tmp_path, tmp_path / "run") as host:
        server = host.blue.server
        idle, busy = await host.client(), await host.client()
        assert (await idle.ask()).slot == "blue"
        busy.send(SLOW)
        await until(lambda: host.blue.app.running, "the request")
        assert not await server.vacate(lambda: False)  # withdrawn while a request runs
        server.serve_again()
        assert (await idle.ask()).slot == "blue"

        host.blue.app.proceed.set()
        assert await server.vacate(lambda: True)
        assert (await busy.reply()).slot == "blue"
        await until(lambda: not host.blue.connections, "the backlog")
        late = await host.client(accepted=False)
        for client in (idle, busy, late):
            client.send(GET)
        assert not server.is_serving
        adopted = host.blue.ledger.adopted
        await asyncio.sleep(0.1)  # several ticks
        assert (host.blue.connections, host.blue.ledger.adopted) == ([], adopted)
        server.serve_again()
        assert [(await client.reply()).slot for client in (idle, busy, late)] == ["blue"] * 3

        assert await server.vacate(lambda: True)
        await until(lambda: not host.blue.connections, "the backlog")
        later = await host.client(accepted=False)
        clients: list[Client] = [idle, busy, late, later]
        for client in clients:
            client.send(GET)
        host.go_live("green")
        assert [(await client.reply()).slot for client in clients] == ["green"] * 4


class Sleepers:
    """Blue, live, with one worker in this process, and the controller of a swap to green."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, *, can_sleep: bool = True) -> None:
        with directories(path) as host:
            self.context = ScriptedContext.of(host, Moments())
        self.directory = path / "run/blue/1"
        self.directory.mkdir(parents=True)
        pid, ticks = os.getpid(), own_start_ticks()
        Generation(1, "blue", "1.0.0", "", pid, ticks, ready=True).write(self.directory)
        self.state = WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0")
        self.state.can_sleep = can_sleep
        self.publish("ready")
        self.order = SleepOrder(self.directory)
        self.looks = 0
        monkeypatch.setattr(memory, "require_asleep", lambda *_: None)
        monkeypatch.setattr(memory, "require", lambda *_: None)
        monkeypatch.setattr("deploy.rollout.sleep.POLL", 0.001)

    def publish(self, phase: Phase) -> None:
        self.state.phase = phase
        WorkerStateFile(self.directory / f"{self.state.pid}.json", self.state).publish()

    def rollout(self, look: Callable[[], object] = lambda: None) -> Rollout:
        """Return the swap; `look` is called at each look at its workers."""
        rollout = self.context.deploy(Plan("1.1.0", strategy="swap"))
        rollout.frozen_in("blue").look = look  # type: ignore[method-assign, assignment]
        return rollout

    def fall_asleep(self, seconds: float = 60.0) -> bool:
        rollout = self.rollout(lambda: self.publish("asleep") if self.order.is_given else None)
        return fall_asleep(rollout, "blue", time.monotonic() + seconds)


@pytest.fixture
def sleepers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sleepers:
    return Sleepers(tmp_path, monkeypatch)


def test_workers_sleep_and_wake_up(sleepers: Sleepers) -> None:
    """By the order, which is what is left of it if the controller dies."""
    assert sleepers.fall_asleep()
    assert sleepers.order.is_given
    assert wake_up(sleepers.context, "blue")
    assert not sleepers.order.is_given
    sleepers.publish("ready")
    assert not wake_up(sleepers.context, "blue")
    assert not wake_up(sleepers.context, "green")


def test_workers_that_cannot_sleep_are_not_ordered_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of another engine."""
    sleepers = Sleepers(tmp_path, monkeypatch, can_sleep=False)
    assert not sleepers.fall_asleep()
    assert not sleepers.order.is_given


def test_a_second_generation_that_leaves_still_holds_memory(sleepers: Sleepers) -> None:
    """So nothing is gained by the sleep of the other."""
    other = sleepers.directory.with_name("2")
    other.mkdir()
    Generation(2, "blue", "1.0.0", "", os.getpid(), own_start_ticks(), ready=True).write(other)
    WorkerStateFile(other / f"{sleepers.state.pid}.json", sleepers.state).publish()
    assert not sleepers.fall_asleep()


def no_room(*_: Any) -> None:
    raise NoRoom("3 GiB are missing")


@pytest.mark.parametrize(("check", "is_given"), [("require_asleep", False), ("require", True)])
def test_without_memory_the_workers_are_stopped_instead(
    sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch, check: str, is_given: bool
) -> None:
    """Of the host for the weights; of the device for the candidate, beside what processes that sleep keep.

    In the second case the order stays: without it they would wake up before they are stopped.
    """
    monkeypatch.setattr(memory, check, no_room)
    assert not sleepers.fall_asleep()
    assert sleepers.order.is_given is is_given


def test_requests_that_do_not_end_in_time(sleepers: Sleepers) -> None:
    """The workers are stopped at the drain deadline, and cut them."""
    assert not fall_asleep(sleepers.rollout(), "blue", time.monotonic() + 0.01)
