"""The account of one worker: what it counted, and the small file that outlives it."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from service.contract.processes import birth

logger = logging.getLogger("gunicorn.error")

Phase = Literal["loading", "warming up", "checking", "ready", "failed", "leaving", "gone"]


@dataclass
class Ledger:
    """Requests and connections of one worker, counted from its birth.

    A request is accepted with its first byte. It is completed when it was answered (a 4xx is an answer), failed when we
    answered 5xx or broke off, client-aborted when the client left first. `cut` says how many of the failed ones were
    ended by a drain deadline; `drained` how many of the completed ones were in flight when the generation stopped
    taking requests. Requests that came in through the slot's own door count under `door` alone.
    """

    accepted: int = 0
    completed: int = 0
    failed: int = 0
    client_aborted: int = 0
    drained: int = 0
    cut: int = 0
    handed_out: int = 0
    adopted: int = 0
    door: int = 0


@dataclass
class Report:
    """How far this worker has come with an order to hold other weights; `pause_ms`: how long requests waited for it."""

    id: str
    state: str
    step: str = ""
    progress: float = 0.0
    error: str | None = None
    pause_ms: float | None = None


@dataclass
class Account:
    """The worker's state file `<runtime>/<slot>/<generation>/<pid>.json`, replaced by rename."""

    path: Path
    slot: str
    generation: int
    version: str
    pid: int = field(default_factory=os.getpid)
    born: int | None = field(default_factory=lambda: birth(os.getpid()))
    """With `pid` it tells this process from any later one; clock ticks since boot."""
    phase: Phase = "loading"
    step: str = ""
    progress: float = 0.0
    error: str | None = None
    gate: Literal["open", "closed"] = "closed"
    gate_changed_at: float | None = None
    """CLOCK_MONOTONIC seconds, which all processes of the host share."""
    answering: bool = True
    connections: int = 0
    in_flight: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    change: Report | None = None
    past: list[dict[str, Any]] = field(default_factory=list)
    """Versions that the model held before, each with the ledger as it stood when the next one took its place."""

    def __post_init__(self) -> None:
        self._written: dict[str, Any] = {}
        self._written_at = 0.0
        self._complained = False

    def write(self, *, at_least_every: float = 1.0) -> None:
        """Replace the file if anything changed, or if it is older than `at_least_every` seconds.

        A full disk must not end the service: the failure is logged once and the next change is tried again.
        """
        document = self._document()
        now = time.monotonic()
        if document == self._written and now - self._written_at < at_least_every:
            return
        temporary = self.path.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(document | {"updated_at": time.time()}))
            temporary.replace(self.path)
        except OSError as error:
            if not self._complained:
                logger.error("cannot write the state file %s: %s", self.path, error)  # noqa: TRY400
            self._complained = True
            return
        self._written, self._written_at, self._complained = document, now, False

    def _document(self) -> dict[str, Any]:
        change = dict(vars(self.change)) if self.change else None
        more = {"ledger": dict(vars(self.ledger)), "change": change, "past": list(self.past)}
        return {name: getattr(self, name) for name in _WRITTEN} | more

    def tell(self, report: Report) -> None:
        """Show, from now on, how far an order has come."""
        self.change = report
        self.write()

    def turn(self, version: str) -> None:
        """What is counted from now on is of another version."""
        self.past.append({"version": self.version, "ledger": dict(vars(self.ledger))})
        self.version = version

    def set_gate(self, is_open: bool) -> None:
        """Note that the gate was opened or closed, now."""
        self.gate = "open" if is_open else "closed"
        self.gate_changed_at = time.monotonic()


# by name and not by asdict, which takes ten times as long and is asked 50 times a second
_WRITTEN = [one.name for one in fields(Account) if one.name not in ("path", "ledger", "change", "past")]
