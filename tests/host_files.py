"""The files of a host that the programs share, as a scrape finds them."""

from __future__ import annotations

import os
from pathlib import Path

from service.contract import processes, rollout_report
from service.contract.canary_file import Canary, CanaryFile
from service.contract.generations import Generation
from service.contract.rollout_report import RunningRollout
from service.contract.slots import Slots, generation_directory
from service.contract.worker_state import Phase, WorkerState, WorkerStateFile

ROLLOUT = RunningRollout("20260101-000000-01", "deploy", "overlap", "1.1.0", "green", "canary", 1000.0)
DEAD = 1 << 22  # a pid that no process has


def add_generation(root: Path, slot: str, number: int, version: str, phase: Phase, *, pid: int | None = None) -> None:
    """Add a generation with one worker; both are this process unless `pid` says otherwise."""
    directory = generation_directory(root, slot, number)
    directory.mkdir(parents=True)
    process = os.getpid() if pid is None else pid
    ticks = processes.start_ticks(process)
    Generation(number, slot, version, f"releases/{version}", process, ticks, ready=True).write(directory)
    state = WorkerState(process, version, phase, slot, number, ticks, gate="open" if slot == "blue" else "closed")
    WorkerStateFile(directory / f"{process}.json", state).publish()


def new_host(root: Path) -> None:
    """Blue serves 1.0.0 and a canary of green gets a quarter; a generation before has ended, and a rollout runs."""
    (root / "releases").mkdir()
    add_generation(root, "blue", 1, "0.9.0", "ready", pid=DEAD)
    add_generation(root, "blue", 2, "1.0.0", "ready")
    add_generation(root, "green", 1, "1.1.0", "leaving")
    Slots(root).go_live("blue")
    CanaryFile(root).write(Canary("green", 25.0, 1))
    rollout_report.write(root, RunningRollout("before", "deploy", "overlap", "1.0.0", "blue", "retire", 1.0, "done"))
    rollout_report.write(root, ROLLOUT)
