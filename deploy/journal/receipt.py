"""The receipt: the counts of every request during a rollout, computed from the workers' state files."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pydantic import BaseModel, Field, computed_field

from deploy.host import Host
from service.contract import fields
from service.contract.generations import Generation, all_generations
from service.contract.processes import boot_id
from service.contract.worker_state import Ledger, WorkerState

__all__ = ["Count", "Line", "Receipt", "Snapshot", "Sums", "baseline", "compute", "dump", "load", "settled", "snapshot"]

_GRACE = 2.0  # seconds for connections that are on their way from one process to another
_POLL = 0.05
_COUNTED = ("accepted", "completed", "failed", "client_aborted", "drained", "cut", "handed_out", "adopted")


class Sums(BaseModel):
    """Counts of requests, and of connections that were handed over."""

    accepted: int = 0
    completed: int = 0
    failed: int = 0
    """Responses with a 5xx, responses that were broken off, and requests in flight in a worker that was killed."""
    client_aborted: int = 0
    in_flight: int = 0
    drained: int = 0
    """Of the completed: in flight when their generation stopped taking requests."""
    cut: int = 0
    """Of the failed: ended by the drain deadline."""
    handed_out: int = 0
    adopted: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def adds_up(self) -> bool:
        """Whether every accepted request is counted as completed, failed, aborted or in flight."""
        return self.accepted == self.completed + self.failed + self.client_aborted + self.in_flight

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lost(self) -> int:
        """Requests that failed."""
        return self.failed


class Line(Sums):
    """The counts of one version in one generation; requests in flight at the start of the rollout are accepted ones."""

    slot: str
    generation: int
    version: str


class Receipt(Sums):
    """The sums over all generations, and a line for each."""

    probes: int = 0
    """Of the accepted: requests of this controller to the public socket."""
    unread: int = 0
    """Requests, at least, that frozen workers had not read when the controller killed them. They are in no line."""
    killed: int = 0
    """Workers that were killed, or whose master was: nobody knows which connections they had received."""
    lines: list[Line] = Field(default_factory=list)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def adds_up(self) -> bool:
        """Whether every line adds up, and every connection that was handed over was received."""
        return all(line.adds_up for line in self.lines) and self.unadopted == 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lost(self) -> int:
        """Requests that failed, and those that no worker had read."""
        return self.failed + self.unread

    @computed_field  # type: ignore[prop-decorator]
    @property
    def unadopted(self) -> int:
        """Client connections that were handed over and not received; unknown, and 0, if a worker was killed.

        One may have been received that was on its way when the rollout began, so that more were received.
        """
        return 0 if self.killed else max(0, self.handed_out - self.adopted)


class Count(BaseModel):
    """The counts of one worker and version at one moment."""

    slot: str
    generation: int
    version: str
    numbers: dict[str, int]
    in_flight: int
    died: bool
    """Whether the worker was killed with requests in flight."""
    killed: bool = False
    """Whether it was killed at all, or its master."""


Snapshot = dict[tuple[str, int, int, int], Count]
"""By slot, generation, pid, and the number of versions that the worker held before."""


class _SnapshotFile(BaseModel):
    """Generations and pids of another boot mean nothing."""

    boot: str
    counts: list[tuple[tuple[str, int, int, int], Count]]


def dump(counts: Snapshot) -> str:
    """Return a snapshot as JSON."""
    return _SnapshotFile(boot=boot_id(), counts=list(counts.items())).model_dump_json()


def load(text: bytes) -> Snapshot:
    """Parse a snapshot; after a reboot, which resets all counts, it is empty. Raises ValueError."""
    file = _SnapshotFile.model_validate(fields.parse(text))
    return dict(file.counts) if file.boot == boot_id() else {}


def snapshot(host: Host) -> Snapshot:
    """Read the counts of every worker of every generation, of those that have ended too."""
    return {
        (generation.slot, generation.generation, worker.pid, number): count
        for generation in all_generations(host.runtime)
        for worker in generation.workers
        for number, count in enumerate(_counts(generation, worker))
    }


def baseline(host: Host) -> Snapshot:
    """Return what every worker has counted so far, once no connection is on its way; waits for _GRACE at most.

    Workers write their counts every 20 ms. One that is counted as received here, and was not yet as handed over, would
    be missing in the receipt.
    """
    deadline = time.monotonic() + _GRACE
    found = snapshot(host)
    while True:
        time.sleep(_POLL)
        before, found = found, snapshot(host)
        if _moved(before) == _moved(found) or time.monotonic() >= deadline:
            return found


def _moved(counts: Snapshot) -> list[tuple[int, int]]:
    return [(count.numbers["handed_out"], count.numbers["adopted"]) for count in counts.values()]


def settled(host: Host, before: Snapshot, *, probes: int = 0, unread: int = 0) -> Receipt:
    """Return the receipt of what has happened since a snapshot; waits _GRACE for connections that are on their way."""
    deadline = time.monotonic() + _GRACE
    while (receipt := compute(before, snapshot(host), probes=probes)).unadopted and time.monotonic() < deadline:
        time.sleep(_POLL)
    receipt.unread = unread
    return receipt


def compute(before: Snapshot, after: Snapshot, *, probes: int = 0) -> Receipt:
    """Return the receipt of what happened between two snapshots."""
    lines: dict[tuple[str, int, str], Line] = {}
    for key, count in after.items():
        earlier = before.get(key)
        if earlier is not None and earlier.died:
            continue
        line = lines.setdefault(
            (count.slot, count.generation, count.version),
            Line(slot=count.slot, generation=count.generation, version=count.version),
        )
        for name in _COUNTED:
            subtracted = earlier.numbers.get(name, 0) if earlier else 0
            setattr(line, name, getattr(line, name) + count.numbers[name] - subtracted)
        line.accepted += earlier.in_flight if earlier else 0
        if count.died:
            line.failed += count.in_flight
        else:
            line.in_flight += count.in_flight
    shown = [line for _, line in sorted(lines.items()) if line.accepted or line.adopted or line.handed_out]
    killed = sum(count.killed and not (key in before and before[key].killed) for key, count in after.items())
    receipt = Receipt(lines=shown, probes=probes, killed=killed)
    for line in shown:
        for name in (*_COUNTED, "in_flight"):
            setattr(receipt, name, getattr(receipt, name) + getattr(line, name))
    return receipt


def _counts(generation: Generation, worker: WorkerState) -> Iterator[Count]:
    """Yield a count for each version of the worker. Requests in flight at a change count for the later version."""
    began = Ledger()
    for past in worker.past:
        numbers = _difference(began, past.ledger)
        numbers["accepted"] -= past.ledger.in_flight
        yield _count(generation, past.version, numbers)
        began = past.ledger
    yield _count(
        generation,
        worker.version,
        _difference(began, worker.ledger),
        in_flight=worker.in_flight,
        died=not worker.is_alive and worker.in_flight > 0,
        killed=_was_killed(generation, worker),
    )


def _was_killed(generation: Generation, worker: WorkerState) -> bool:
    """Return whether the worker, or its master, ended otherwise than by leaving.

    One that only loaded, or slept, held no request.
    """
    if worker.phase in {"loading", "warming up", "checking", "asleep", "failed"}:
        return False
    if worker.is_alive or worker.phase == "gone":
        return not generation.is_alive and not generation.stopping
    return True


def _count(
    generation: Generation,
    version: str,
    numbers: dict[str, int],
    *,
    in_flight: int = 0,
    died: bool = False,
    killed: bool = False,
) -> Count:
    return Count(
        slot=generation.slot,
        generation=generation.generation,
        version=version,
        numbers=numbers,
        in_flight=in_flight,
        died=died,
        killed=killed,
    )


def _difference(began: Ledger, ended: Ledger) -> dict[str, int]:
    numbers = {name: getattr(ended, name) - getattr(began, name) for name in _COUNTED}
    numbers["accepted"] += began.in_flight
    return numbers
