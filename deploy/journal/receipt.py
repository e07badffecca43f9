"""The receipt: the account of every request during a rollout, drawn up from the workers' state files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field, computed_field

from deploy.host import Host
from deploy.journal.accounts import Generation, Ledger, Worker, everything

_COUNTED = ("accepted", "completed", "failed", "client_aborted", "drained", "cut", "handed_out", "adopted")


class Sums(BaseModel):
    """Counts of requests and of connections that changed hands."""

    accepted: int = 0
    completed: int = 0
    failed: int = 0
    """5xx answers, answers broken off, and whatever a worker that was killed had in hand."""
    client_aborted: int = 0
    in_flight: int = 0
    drained: int = 0
    """Of the completed: in flight when their generation stopped taking requests, and finished afterwards."""
    cut: int = 0
    """Of the failed: ended by the drain deadline."""
    handed_out: int = 0
    adopted: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def adds_up(self) -> bool:
        """Whether every request is accounted for."""
        return self.accepted == self.completed + self.failed + self.client_aborted + self.in_flight

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lost(self) -> int:
        """Requests that were accepted and not answered as they should have been."""
        return self.failed


class Line(Sums):
    """One version's part in one generation.

    Requests in flight when the rollout began count as accepted, so that the sum is exact.
    """

    slot: str
    generation: int
    version: str


class Receipt(Sums):
    """The sums over all generations, and each generation's line."""

    probes: int = 0
    """Requests among the accepted that the controller itself sent to the public socket; not those of one that died."""
    lines: list[Line] = Field(default_factory=list)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def adds_up(self) -> bool:
        """Whether every generation's account does."""
        return all(line.adds_up for line in self.lines)


class Count(BaseModel):
    """One worker's counts at one moment."""

    slot: str
    generation: int
    version: str
    numbers: dict[str, int]
    in_flight: int
    died: bool


Snapshot = dict[tuple[str, int, int, int], Count]
"""By slot, generation, worker, and how many versions it held before."""


class _Kept(BaseModel):
    """A snapshot as it is kept on disk. Generations and processes are numbered anew with every boot."""

    boot: str
    counts: list[tuple[tuple[str, int, int, int], Count]]


def dump(counts: Snapshot) -> str:
    """A snapshot as JSON."""
    return _Kept(boot=_boot(), counts=list(counts.items())).model_dump_json()


def load(text: bytes) -> Snapshot:
    """Read a snapshot; after a reboot, where all counts begin at 0, it is an empty one. Raises ValidationError."""
    kept = _Kept.model_validate_json(text)
    return dict(kept.counts) if kept.boot == _boot() else {}


def snapshot(host: Host) -> Snapshot:
    """What every worker of every generation has counted so far, the dead included."""
    return {
        (one.slot, one.generation, worker.pid, number): count
        for one in everything(host)
        for worker in one.workers
        for number, count in enumerate(_counts(one, worker))
    }


def _counts(one: Generation, worker: Worker) -> Iterator[Count]:
    """A count for each version that the worker has held. What one leaves in flight, the next one has accepted."""
    began = Ledger()
    for past in worker.past:
        numbers = _between(began, past.ledger)
        numbers["accepted"] -= past.ledger.in_flight
        yield Count(
            slot=one.slot, generation=one.generation, version=past.version, numbers=numbers, in_flight=0, died=False
        )
        began = past.ledger
    yield Count(
        slot=one.slot,
        generation=one.generation,
        version=worker.version,
        numbers=_between(began, worker.ledger),
        in_flight=worker.in_flight,
        died=not worker.lives and worker.in_flight > 0,
    )


def _between(began: Ledger, ended: Ledger) -> dict[str, int]:
    numbers = {name: getattr(ended, name) - getattr(began, name) for name in _COUNTED}
    numbers["accepted"] += began.in_flight
    return numbers


def draw_up(before: Snapshot, after: Snapshot, *, probes: int = 0) -> Receipt:
    """The account of what happened between two snapshots."""
    lines: dict[tuple[str, int, str], Line] = {}
    for key, count in after.items():
        earlier = before.get(key)
        if earlier is not None and earlier.died:
            continue  # it was dead before we began
        line = lines.setdefault(
            (count.slot, count.generation, count.version),
            Line(slot=count.slot, generation=count.generation, version=count.version),
        )
        for name in _COUNTED:
            was = earlier.numbers.get(name, 0) if earlier else 0
            setattr(line, name, getattr(line, name) + count.numbers[name] - was)
        line.accepted += earlier.in_flight if earlier else 0
        if count.died:
            line.failed += count.in_flight
        else:
            line.in_flight += count.in_flight
    shown = [line for _, line in sorted(lines.items()) if line.accepted or line.adopted or line.handed_out]
    receipt = Receipt(lines=shown, probes=probes)
    for line in shown:
        for name in (*_COUNTED, "in_flight"):
            setattr(receipt, name, getattr(receipt, name) + getattr(line, name))
    return receipt


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
