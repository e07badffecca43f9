"""The journal: a lock that is released when its holder dies, and a record of each phase, written before it acts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from deploy.errors import GlmError, Locked, Unrecorded
from deploy.host import Host
from deploy.journal import announcement, locks, spans
from deploy.journal.receipt import Receipt, Snapshot, dump, load
from deploy.journal.record import Kind, Phase, Record, Step, Strategy, now, operator, seconds_between
from service.contract import atomic, regular_file, rollout_report

__all__ = ["Entry", "Journal", "begin"]

_RECORDS = "[0-9]*.json"
_SNAPSHOT = ".before"
_STAMP = "%Y%m%d-%H%M%S"
_RECENT = 32  # records that are searched for unfinished ones
_WARM = 1.0  # seconds; a start that took less loaded nothing
_UNNAMED_WAIT = 5.0  # seconds; a holder of the lock without an open record is about to write one, or to exit
_POLL = 0.02  # seconds


class Journal:
    """The records of one host. A process that writes them holds the lock, except for a rollback during a bake."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._directory = host.state / "history"
        self._lock = host.state / "lock"
        self._switch = host.state / "switch"
        self._runtime = host.runtime

    @property
    def is_writable(self) -> bool:
        """Whether this user may write it."""
        return os.access(self._directory, os.W_OK)

    def records(self) -> list[Record]:
        """Return all records, oldest first; damaged files are skipped."""
        return list(self.newest())[::-1]

    def newest(self) -> Iterator[Record]:
        """Yield all records, newest first; each is read when it is requested, because there may be thousands."""
        for path in sorted(self._directory.glob(_RECORDS), reverse=True):
            with contextlib.suppress(OSError, ValueError):
                yield Record.read(path)

    def damaged(self) -> Iterator[tuple[Path, Exception]]:
        """Yield the files that cannot be read, with the reason; all other functions skip them."""
        checks: list[tuple[Path, Callable[[Path], object]]] = [
            *((path, Record.read) for path in sorted(self._directory.glob(_RECORDS))),
            *((path, _read_snapshot) for path in sorted(self._directory.glob(f"*{_SNAPSHOT}"))),
            *((path, locks.check) for path in (self._lock, self._switch)),
        ]
        for path, check in checks:
            try:
                check(path)
            except (FileNotFoundError, PermissionError):  # removed meanwhile; this user may not read it
                continue
            except (OSError, ValueError) as error:
                yield path, error

    def find(self, identifier: str) -> Record | None:
        """Return the record with that id."""
        return next((one for one in self.newest() if one.id == identifier), None)

    def last(self) -> Record | None:
        """Return the newest record."""
        return next(self.newest(), None)

    def last_of(self, kind: Kind, version: str) -> Record | None:
        """Return the newest record of this kind and version."""
        return next((one for one in self.newest() if one.kind == kind and one.version == version), None)

    def last_load(self) -> float | None:
        """Return how long the newest rollout that loaded a model waited for it, in seconds."""
        for record in self.newest():
            at = {step.phase: datetime.fromisoformat(step.at) for step in record.steps}
            seconds = (at["verify"] - at["start"]).total_seconds() if {"start", "verify"} <= at.keys() else 0.0
            if seconds > _WARM:
                return seconds
        return None

    def unfinished(self) -> list[Record]:
        """Return the records that have not ended, oldest first; their controllers are dead if the lock is free.

        They are among the newest, because each rollout begins with a recovery.
        """
        return [one for one in islice(self.newest(), _RECENT) if one.outcome is None][::-1]

    def interrupted(self) -> list[Record]:
        """Return the records that have not ended and whose controllers are dead, oldest first. Writes nothing."""
        before = {one.id for one in self.unfinished()}
        if not before or self.is_locked or locks.is_held(self._switch):
            return []
        return [one for one in self.unfinished() if one.id in before]  # one may have ended before its lock was tested

    def write(self, record: Record) -> None:
        """Write `record` durably, and report it to the metrics; raises Unrecorded."""
        self._write(f"{record.id}.json", record.model_dump_json(indent=2))
        rollout_report.write(self._runtime, _running(record))

    def write_snapshot(self, identifier: str, before: Snapshot) -> None:
        """Keep the counts from before a rollout on disk until it ends; delete those of rollouts without a record."""
        wanted = {one.id for one in self.unfinished()}
        for path in self._directory.glob(f"*{_SNAPSHOT}"):
            if path.stem not in wanted:
                path.unlink(missing_ok=True)
        self._write(f"{identifier}{_SNAPSHOT}", dump(before))

    def read_snapshot(self, identifier: str) -> Snapshot | None:
        """Return the counts from before that rollout; None if they are not on disk."""
        try:
            return _read_snapshot(self._directory / f"{identifier}{_SNAPSHOT}")
        except (OSError, ValueError):
            return None

    def delete_snapshot(self, identifier: str) -> None:
        """Delete the counts from before that rollout, which has ended."""
        (self._directory / f"{identifier}{_SNAPSHOT}").unlink(missing_ok=True)

    def new_id(self) -> str:
        """Return an id that sorts after all others; also if the clock was set back, the order stays that of events."""
        stamp = datetime.now(UTC).strftime(_STAMP)
        newest = max((path.stem for path in self._directory.glob(_RECORDS)), default="").rpartition("-")[0]
        if newest > stamp:
            with contextlib.suppress(ValueError):  # a file that somebody put there
                stamp = (datetime.strptime(newest, _STAMP) + timedelta(seconds=1)).strftime(_STAMP)
        taken = {path.stem for path in self._directory.glob(f"{stamp}*.json")}
        return next(name for name in (f"{stamp}-{n:02}" for n in range(1, 1000)) if name not in taken)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the rollout lock; the kernel frees it at exit.

        Raises Locked if another process holds it: at once while a rollout runs, else (its rollout has just ended, or
        not yet begun) after 5 s.
        """
        self._create()
        with contextlib.ExitStack() as stack:
            deadline = time.monotonic() + _UNNAMED_WAIT
            while True:
                try:
                    stack.enter_context(locks.held(self._lock, wait=False))
                    break
                except BlockingIOError as error:
                    running = self.unfinished()
                    if running or time.monotonic() >= deadline:
                        raise _locked_by(running) from error
                time.sleep(_POLL)
            yield

    @property
    def is_locked(self) -> bool:
        """Whether a rollout is running; also if this user may not read the lock file."""
        return locks.is_held(self._lock)

    @contextlib.contextmanager
    def switching(self) -> Iterator[None]:
        """Hold the lock on the rename of `live`, and on the phase after which it is final. Waits for the lock.

        A process that stops a slot holds it too, so that the slot does not become live meanwhile.
        """
        self._create()
        with locks.held(self._switch, wait=True):
            yield

    def _write(self, name: str, text: str) -> None:
        path = self._directory / name
        try:
            atomic.write_text(path, text, durable=True)
        except OSError as error:
            message = f"cannot write the journal {path}: {error.strerror}"
            raise Unrecorded(message, hint="is the disk full?") from error

    def _create(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock.touch()
        except OSError as error:
            raise GlmError(
                f"cannot write to {self._lock.parent}: {error.strerror}", hint="run it as root, or with --user"
            ) from error


def _running(record: Record) -> rollout_report.RunningRollout:
    began = datetime.fromisoformat(record.steps[-1].at if record.steps else record.started_at).timestamp()
    return rollout_report.RunningRollout(
        record.id, record.kind, record.strategy, record.version, record.slot, record.phase, began, record.outcome
    )


def _read_snapshot(path: Path) -> Snapshot:
    return load(regular_file.read(path))


def _locked_by(running: list[Record]) -> Locked:
    found = "; ".join(f"{one.kind} of {one.version}, in {one.phase}" for one in running)
    return Locked(
        f"another rollout holds the lock ({found or 'starting'})", hint="`glmctl status --watch` shows its progress"
    )


class Entry:
    """The record of the rollout that this process runs; every change is written before it takes effect.

    A rollback goes on without: on a full disk clients must not be left to a bad version. What raises Unrecorded for
    other rollouts is kept in `unrecorded` then.
    """

    def __init__(self, journal: Journal, record: Record) -> None:
        self.journal = journal
        self.record = record
        self.unrecorded: Unrecorded | None = None
        """Why what was last written of a rollback is not on disk."""
        self._began = time.monotonic() - (seconds_between(record.started_at, now()) or 0.0)

    def enter(self, phase: Phase) -> None:
        """Record that `phase` begins."""
        self.record.steps.append(Step(phase=phase, at=now()))
        self._write()
        announcement.announce_phase(self.record)

    def end(self, outcome: str, *, reason: str | None = None, receipt: Receipt | None = None) -> None:
        """Record how the rollout ended."""
        self.record.outcome = outcome
        self.record.reason = reason
        self.record.receipt = receipt
        self.record.ended_at = now()
        self.record.seconds = round(time.monotonic() - self._began, 3)
        self._write()
        self.journal.delete_snapshot(self.record.id)
        announcement.announce_end(self.record)
        spans.export(self.journal.host, self.record)

    def keep(self, before: Snapshot) -> None:
        """Keep the counts from before the rollout, for the receipt of a process that resumes it."""
        with self._tolerated():
            self.journal.write_snapshot(self.record.id, before)

    def _write(self) -> None:
        self.unrecorded = None
        with self._tolerated():
            self.journal.write(self.record)

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except Unrecorded as error:
            if self.record.kind != "rollback":
                raise
            self.unrecorded = error


def begin(journal: Journal, kind: Kind, version: str, slot: str, strategy: Strategy = "overlap") -> Entry:
    """Return a new entry; its first phase writes it."""
    record = Record(id=journal.new_id(), kind=kind, strategy=strategy, version=version, slot=slot, started_at=now())
    record.operator = operator()
    return Entry(journal, record)
