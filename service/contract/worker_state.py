"""The state file of one worker, `$RUNTIME/<slot>/<generation>/<pid>.json`: its phase, gate and ledger.

It outlives the process, so that a receipt can be computed after a crash.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from service.contract import atomic, fields, processes
from service.contract.devices import CPU

__all__ = ["HEARTBEAT", "Ledger", "PastVersion", "Phase", "SwapReport", "WorkerState", "WorkerStateFile"]

HEARTBEAT = 0.2
"""Seconds after which a worker that runs writes its state file again, though nothing has changed. Each write changes
the modification time of the file: a controller takes a worker for frozen in which that stays the same."""

logger = logging.getLogger("gunicorn.error")

Phase = Literal["loading", "warming up", "checking", "ready", "asleep", "failed", "leaving", "gone"]


@dataclass
class Ledger:
    """Counts of requests and connections of one worker since it started.

    A request is accepted with its first byte. It is completed when it was answered (also with a 4xx), failed when the
    answer was a 5xx or was broken off, client-aborted when the client disconnected first or took too long. `cut`
    counts the failed requests that a drain deadline ended, `drained` the completed ones that were in flight when the
    generation stopped taking requests; `handed_out` and `adopted` count connections passed to and received from
    another process. Requests through the slot's internal socket are counted as `internal` and nowhere else.
    """

    accepted: int = 0
    completed: int = 0
    failed: int = 0
    client_aborted: int = 0
    drained: int = 0
    cut: int = 0
    handed_out: int = 0
    adopted: int = 0
    internal: int = 0

    @property
    def in_flight(self) -> int:
        """Requests that were accepted and have not ended."""
        return self.accepted - self.completed - self.failed - self.client_aborted


@dataclass
class SwapReport:
    """The progress of a weights order in one worker.

    `pause_ms`: how long requests waited for it. `staged`: the memory from which the new weights replace the old ones.
    """

    id: str
    state: str
    step: str = ""
    progress: float = 0.0
    error: str | None = None
    pause_ms: float | None = None
    staged: str | None = None


@dataclass
class PastVersion:
    """A version whose weights the worker used before, and the ledger at the time of its replacement."""

    version: str
    ledger: Ledger


@dataclass
class WorkerState:
    """The published state of one worker."""

    pid: int
    version: str
    phase: Phase
    slot: str = ""
    generation: int = 0
    start_ticks: int | None = None
    """With `pid` it identifies the process; clock ticks since boot."""
    device: str = CPU
    """`cpu`, or the GPU that it is pinned to: `cuda:N`, with its number in `nvidia-smi`."""
    step: str = ""
    progress: float = 0.0
    error: str | None = None
    load: dict[str, float] = field(default_factory=dict)
    """Seconds that each part of the load took: imports, reading, building, warming up, checking."""
    memory: int = 0
    """Bytes that it takes of its GPU: weights, workspace and KV cache; 0 on the CPU."""
    can_sleep: bool = False
    """Whether its engine can free its GPU and keep the weights in the host's memory: the phase `asleep`."""
    gate: Literal["open", "closed"] = "closed"
    gate_changed_at: float | None = None
    """CLOCK_MONOTONIC, in seconds."""
    answering: bool = True
    """False when the engine has work and has made no progress for too long."""
    connections: int = 0
    in_flight: int = 0
    pinned: int = 0
    """Of them: requests whose client chose the side of a canary."""
    ledger: Ledger = field(default_factory=Ledger)
    swap: SwapReport | None = None
    past: list[PastVersion] = field(default_factory=list)
    updated_at: float = 0.0
    """Seconds since the epoch."""

    @classmethod
    def of_this_process(cls, *, slot: str, generation: int, version: str, device: str = CPU) -> WorkerState:
        """Return the state of a worker that has just started."""
        return cls(
            pid=os.getpid(),
            version=version,
            phase="loading",
            slot=slot,
            generation=generation,
            start_ticks=processes.own_start_ticks(),
            device=device,
        )

    def memory_on(self, device: str) -> int:
        """Return the bytes that it takes of a device. One that is not pinned, as on part of a GPU, counts on each."""
        mine = self.device.removeprefix("cuda:").split("+")  # each has an equal part of a model
        return self.memory if self.device == CPU or device.removeprefix("cuda:") in (*mine, "+".join(mine)) else 0

    @classmethod
    def read(cls, path: Path) -> WorkerState | None:
        """Read a state file; None when it is absent or damaged."""
        try:
            return fields.read(cls, path)
        except (OSError, ValueError):
            return None

    def document(self) -> dict[str, Any]:
        """Return the fields for JSON.

        Not dataclasses.asdict, which takes ten times as long: this is called up to 50 times a second.
        """
        nested: dict[str, Any] = {
            "load": dict(self.load),
            "ledger": dict(vars(self.ledger)),
            "swap": dict(vars(self.swap)) if self.swap else None,
            "past": [asdict(past) for past in self.past],
        }
        return vars(self) | nested

    @property
    def is_alive(self) -> bool:
        """Whether the process is still running."""
        return self.phase != "gone" and processes.is_alive(self.pid, self.start_ticks)

    def set_gate(self, is_open: bool) -> None:
        """Set the gate and the time of its change."""
        self.gate = "open" if is_open else "closed"
        self.gate_changed_at = time.monotonic()

    def set_version(self, version: str) -> None:
        """Set the version after a weight swap, and keep the ledger of the one before."""
        self.past.append(PastVersion(self.version, Ledger(**vars(self.ledger))))
        self.version = version


class WorkerStateFile:
    """Publishes the state of the calling worker."""

    def __init__(self, path: Path, state: WorkerState) -> None:
        self.path = path
        self.state = state
        self._written: dict[str, Any] = {}
        self._written_at = 0.0
        self._failed = False

    def publish(self, *, at_least_every: float = HEARTBEAT) -> None:
        """Replace the file if anything changed, or if it is older than `at_least_every` seconds.

        A full disk must not stop the service: an error is logged once, and the next call tries again. The modification
        time of the old file, which takes no space, shows meanwhile that the worker runs.
        """
        document = self.state.document()
        now = time.monotonic()
        if document == self._written and now - self._written_at < at_least_every:
            return
        try:
            atomic.write_text(self.path, json.dumps(document | {"updated_at": time.time()}))
        except OSError as error:
            if not self._failed:
                logger.error("cannot write the state file %s: %s", self.path, error)  # noqa: TRY400
            self._failed = True
            with suppress(OSError):
                os.utime(self.path)
            return
        self._written, self._written_at, self._failed = document, now, False
