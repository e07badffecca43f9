"""What the server's processes wrote about themselves: records of generations, state files of workers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.host import SLOTS, Host

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Ledger(BaseModel):
    """A worker's counts since its birth; see the server's own description of each."""

    model_config = ConfigDict(extra="ignore")

    accepted: int = 0
    completed: int = 0
    failed: int = 0
    client_aborted: int = 0
    drained: int = 0
    cut: int = 0
    handed_out: int = 0
    adopted: int = 0

    @property
    def in_flight(self) -> int:
        """Requests that were accepted and had not ended when it was written."""
        return self.accepted - self.completed - self.failed - self.client_aborted


class Report(BaseModel):
    """How far a worker has come with an order to hold other weights."""

    model_config = ConfigDict(extra="ignore")

    id: str
    state: str
    step: str = ""
    progress: float = 0.0
    error: str | None = None
    pause_ms: float | None = None


class Past(BaseModel):
    """A version whose weights a worker held before, and its counts when the next ones took their place."""

    version: str
    ledger: Ledger


class Worker(BaseModel):
    """A worker's state file. It outlives the worker."""

    model_config = ConfigDict(extra="ignore")

    pid: int
    born: int | None = None
    version: str
    phase: str
    step: str = ""
    progress: float = 0.0
    error: str | None = None
    gate: Literal["open", "closed"] = "closed"
    connections: int = 0
    in_flight: int = 0
    ledger: Ledger = Field(default_factory=Ledger)
    change: Report | None = None
    past: list[Past] = Field(default_factory=list)

    @property
    def lives(self) -> bool:
        """Whether the process is still there."""
        return self.phase != "gone" and _lives(self.pid, self.born)

    @property
    def memory(self) -> int:
        """Resident memory in bytes; 0 when the process is gone."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE
        except OSError:
            return 0


class Generation(BaseModel):
    """A generation's record with its workers' state files, dead workers included."""

    model_config = ConfigDict(extra="ignore")

    generation: int
    slot: str
    version: str
    release: str
    master: int
    born: int | None = None
    workers_wanted: int = 1
    ready: bool = False
    stopping: bool = False
    workers: list[Worker] = Field(default_factory=list)

    @property
    def lives(self) -> bool:
        """Whether its master is still there."""
        return _lives(self.master, self.born)

    @property
    def living(self) -> list[Worker]:
        """The workers that are still there."""
        return [worker for worker in self.workers if worker.lives]

    @property
    def serves(self) -> bool:
        """Whether a worker of it can answer now."""
        return self.ready and any(worker.phase == "ready" for worker in self.living)

    @property
    def gate(self) -> Literal["open", "closed"]:
        """Open as soon as one worker takes connections."""
        return "open" if any(worker.gate == "open" for worker in self.living) else "closed"

    @property
    def in_flight(self) -> int:
        """Requests that its living workers have begun and not ended."""
        return sum(worker.in_flight for worker in self.living)

    @property
    def connections(self) -> int:
        """Client connections that its living workers hold."""
        return sum(worker.connections for worker in self.living)

    @property
    def error(self) -> str | None:
        """Why it could not become ready, in the words of the first worker that gave up."""
        return next((worker.error for worker in self.workers if worker.error), None)

    @property
    def load(self) -> str:
        """How far the slowest worker has come, for a person to read."""
        loading = [worker for worker in self.living if worker.phase != "ready"]
        if not loading:
            return "loaded" if self.living else "starting"
        slowest = min(loading, key=lambda worker: worker.progress)
        return f"{slowest.step or slowest.phase} {slowest.progress:.0%}"


def generations(host: Host, slot: str) -> list[Generation]:
    """All generations of `slot` whose accounts are still there, oldest first."""
    found = (_read(path) for path in (host.runtime / slot).glob("[0-9]*/generation.json"))
    return sorted((one for one in found if one is not None), key=lambda one: one.generation)


def born_since(host: Host, slot: str, known: set[int]) -> list[Generation]:
    """The generations of `slot` whose numbers are not among the `known`, oldest first."""
    return [one for one in generations(host, slot) if one.generation not in known]


def current(host: Host, slot: str) -> Generation | None:
    """The newest ready generation of `slot` that lives, or else the newest that lives."""
    alive = [one for one in generations(host, slot) if one.lives]
    ready = [one for one in alive if one.ready]
    return next(iter(reversed(ready or alive)), None)


def everything(host: Host) -> Iterable[Generation]:
    """All generations of both slots."""
    for slot in SLOTS:
        yield from generations(host, slot)


def _read(path: Path) -> Generation | None:
    try:
        record = Generation.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    for account in path.parent.glob("[0-9]*.json"):
        try:
            record.workers.append(Worker.model_validate_json(account.read_bytes()))
        except (OSError, ValidationError):
            continue
    return record


def birth(pid: int) -> int | None:
    """When the process was started, in clock ticks since boot (field 22); None when there is none, or its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _lives(pid: int, born: int | None) -> bool:
    """Whether the process is there, and is the one that wrote: numbers are given out again."""
    now = birth(pid)
    return now is not None and now == born
