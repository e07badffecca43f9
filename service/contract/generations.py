"""The record of one generation, `$RUNTIME/<slot>/<generation>/generation.json`, with the state files of its workers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from service.contract import atomic, fields, processes
from service.contract.slots import SLOTS
from service.contract.worker_state import WorkerState

__all__ = [
    "WORKER_FILES",
    "Generation",
    "all_generations",
    "current",
    "generation_directories",
    "generations",
    "started_since",
    "worker_states",
]

WORKER_FILES = "[0-9]*.json"
"""The pattern of the names of workers' state files in a generation's directory."""

_RECORD = "generation.json"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


@dataclass
class _Record:
    generation: int
    slot: str
    version: str
    release: str
    """The release directory."""
    master: int
    """The pid of the Gunicorn master."""
    start_ticks: int | None = None
    """With `master` it identifies the process; clock ticks since boot."""
    parent: int | None = None
    """The master that started this one with USR2."""
    workers_wanted: int = 1
    ready: bool = False
    stopping: bool = False
    recorded_at: float = 0.0
    """Seconds since the epoch."""


@dataclass
class Generation(_Record):
    """One Gunicorn master and its workers, including those that have exited."""

    def __post_init__(self) -> None:
        self.workers: list[WorkerState] = []

    @classmethod
    def read(cls, directory: Path) -> Generation | None:
        """Read a generation's record and its workers' state files; None when the record is absent or damaged."""
        found = cls.read_record(directory)
        if found is not None:
            found.workers = worker_states(directory)
        return found

    @classmethod
    def read_record(cls, directory: Path) -> Generation | None:
        """Read the record alone."""
        try:
            return cls.parse(directory)
        except (OSError, ValueError):
            return None

    @classmethod
    def parse(cls, directory: Path) -> Generation:
        """Read the record alone; raises OSError, and ValueError if it is damaged or of another directory."""
        found = fields.read(cls, directory / _RECORD)
        if (found.slot, str(found.generation)) != (directory.parent.name, directory.name):
            raise ValueError(f"it is of generation {found.generation} of {found.slot[:100]!r}")
        return found

    def write(self, directory: Path) -> None:
        """Replace the record; raises OSError."""
        atomic.write_text(directory / _RECORD, json.dumps(asdict(self) | {"recorded_at": time.time()}))

    @property
    def is_alive(self) -> bool:
        """Whether its master is still running."""
        return processes.is_alive(self.master, self.start_ticks)

    @property
    def alive_workers(self) -> list[WorkerState]:
        """The workers that are still running."""
        return [worker for worker in self.workers if worker.is_alive]

    @property
    def is_serving(self) -> bool:
        """Whether at least one of its workers is ready."""
        return self.ready and any(worker.phase == "ready" for worker in self.alive_workers)

    @property
    def gate(self) -> Literal["open", "closed"]:
        """Open if at least one worker accepts client connections."""
        return "open" if any(worker.gate == "open" for worker in self.alive_workers) else "closed"

    @property
    def in_flight(self) -> int:
        """Requests in flight in its running workers."""
        return sum(worker.in_flight for worker in self.alive_workers)

    @property
    def connections(self) -> int:
        """Client connections of its running workers."""
        return sum(worker.connections for worker in self.alive_workers)

    @property
    def error(self) -> str | None:
        """The error of the first worker that failed."""
        return next((worker.error for worker in self.workers if worker.error), None)

    @property
    def load(self) -> dict[str, float]:
        """Seconds of each part of the load, of the worker that took longest."""
        return max((worker.load for worker in self.workers), key=lambda load: sum(load.values()), default={})

    @property
    def load_progress(self) -> str:
        """How far the slowest worker's load has come, as text."""
        loading = [worker for worker in self.alive_workers if worker.phase != "ready"]
        if not loading:
            return "loaded" if self.alive_workers else "starting"
        slowest = min(loading, key=lambda worker: worker.progress)
        return f"{slowest.step or slowest.phase} {slowest.progress:.0%}"


def worker_states(directory: Path) -> list[WorkerState]:
    """Read the state files in a generation's directory, including those of workers that have exited."""
    found = (WorkerState.read(path) for path in directory.glob(WORKER_FILES))
    return [state for state in found if state is not None]


def generations(runtime: Path, slot: str) -> list[Generation]:
    """Read the generations of `slot` whose records exist, oldest first."""
    found = (Generation.read(path) for path in generation_directories(runtime, slot))
    return sorted(filter(None, found), key=lambda record: record.generation)


def generation_directories(runtime: Path, slot: str) -> Iterator[Path]:
    """Yield the directories of the generations of `slot`, in no order."""
    return (path for path in (runtime / slot).glob("[0-9]*") if _NUMBER.fullmatch(path.name))


def started_since(runtime: Path, slot: str, known: Collection[int]) -> list[Generation]:
    """Read the generations of `slot` whose numbers are not in `known`, oldest first."""
    return [generation for generation in generations(runtime, slot) if generation.generation not in known]


def current(runtime: Path, slot: str) -> Generation | None:
    """Return the newest ready generation of `slot` that is alive, else the newest that is alive."""
    running = [generation for generation in generations(runtime, slot) if generation.is_alive]
    ready = [generation for generation in running if generation.ready]
    return next(iter(reversed(ready or running)), None)


def all_generations(runtime: Path) -> Iterator[Generation]:
    """Read all generations of both slots."""
    for slot in SLOTS:
        yield from generations(runtime, slot)
