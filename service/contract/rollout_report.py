"""The file `$RUNTIME/rollouts.json`: the rollout that runs, or ran last, and how many ended how since the host started.

`glmctl` writes it for the metrics, beside its journal, which is what counts for everything else.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from service.contract import atomic, fields, processes

__all__ = ["Ended", "RolloutReport", "RunningRollout", "path", "read", "write"]


_ATTEMPTS = 50
_PAUSE = 0.01  # seconds


@dataclass(frozen=True)
class RunningRollout:
    """A rollout, the phase that it is in, and the process that runs it."""

    id: str
    kind: str
    strategy: str
    version: str
    slot: str
    phase: str
    phase_began: float
    """Seconds since the epoch."""
    outcome: str | None = None
    """None until it has ended."""
    pid: int = 0
    start_ticks: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended, and its controller is alive."""
        return self.outcome is None and processes.is_alive(self.pid, self.start_ticks)

    @property
    def is_interrupted(self) -> bool:
        """Whether it has not ended, and its controller is dead."""
        return self.outcome is None and not processes.is_alive(self.pid, self.start_ticks)


@dataclass(frozen=True)
class Ended:
    """How many rollouts of a kind ended in this way."""

    kind: str
    outcome: str
    count: int


@dataclass(frozen=True)
class RolloutReport:
    """The content of the file. A rollback during a bake runs beside the deploy: both are in `rollouts` then."""

    rollouts: list[RunningRollout] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)

    def with_rollout(self, rollout: RunningRollout) -> RolloutReport:
        """Return the report after `rollout` was begun, changed or ended; its end is counted once."""
        before = next((one for one in self.rollouts if one.id == rollout.id), None)
        others = [one for one in self.rollouts if one.id != rollout.id and one.outcome is None]
        counts = {(one.kind, one.outcome): one.count for one in self.ended}
        if rollout.outcome is not None and (before is None or before.outcome is None):
            key = (rollout.kind, rollout.outcome)
            counts[key] = counts.get(key, 0) + 1
        return replace(self, rollouts=[*others, rollout], ended=[Ended(*key, count) for key, count in counts.items()])


def path(runtime: Path) -> Path:
    """Return the path of the file."""
    return runtime / "rollouts.json"


def read(runtime: Path) -> RolloutReport:
    """Read the file; an empty report if it is absent or damaged."""
    try:
        return fields.read(RolloutReport, path(runtime))
    except (OSError, ValueError):
        return RolloutReport()


def _lock(directory: int) -> None:
    """Wait for the lock, but not for ever: any user may hold it."""
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        else:
            return


def write(runtime: Path, rollout: RunningRollout) -> None:
    """Add the state of a rollout that the calling process runs. Without room for it the file stays as it is."""
    rollout = replace(rollout, pid=os.getpid(), start_ticks=processes.own_start_ticks())
    with suppress(OSError):
        directory = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _lock(directory)  # a rollback and the deploy that it ends write at the same time
            atomic.write_text(path(runtime), json.dumps(asdict(read(runtime).with_rollout(rollout))))
        finally:
            os.close(directory)
