"""The journal of rollouts: a lock that dies with its holder, and a record of each phase written before it acts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from deploy.analysis.comparison import Verdict
from deploy.errors import GlmError, Locked
from deploy.host import Host
from deploy.journal.receipt import Receipt, Snapshot, dump, load

Kind = Literal["deploy", "rollback", "reload"]
Strategy = Literal["overlap", "swap", "weights"]
Phase = Literal[
    "preflight", "prepare", "vacate", "start", "verify", "canary", "cutover", "bake", "retire", "rollback", "reload"
]
_BEFORE = ".before"
_RECENT = 32  # rollouts among which one can be that has not ended
_LOADED = 1.0  # seconds: what took less was warm
BEFORE_CUTOVER: tuple[Phase, ...] = ("preflight", "prepare", "vacate", "start", "verify", "canary")


class Step(BaseModel):
    """A phase and when it was entered (UTC)."""

    phase: Phase
    at: str


class HookRun(BaseModel):
    """One command of the operator's that was run; `code` is None when its time was over."""

    when: str
    command: str
    code: int | None
    seconds: float
    output: str = Field(validation_alias=AliasChoices("output", "said"))  # earlier records: said

    @property
    def how(self) -> str:
        """How it ended, in words."""
        return f"ended with {self.code}" if self.code is not None else f"was killed after {self.seconds:.0f} s"


class Record(BaseModel):
    """One rollout, as `history` tells it. `outcome` is None until it has ended."""

    id: str
    kind: Kind
    strategy: Strategy = "overlap"
    version: str
    slot: str
    previous: str | None = None
    """The version that was live before."""
    previous_slot: str | None = None
    slot_held: str | None = None
    """What the slot's symlink said before, to be put back if the candidate fails."""
    started_at: str
    ended_at: str | None = None
    seconds: float | None = None
    steps: list[Step] = Field(default_factory=list)
    outcome: str | None = None
    reason: str | None = None
    switch_ms: float | None = None
    """From the rename of `live` to the first answer of the slot it names, asked through the public socket."""
    pause_ms: float | None = None
    """The longest that a client was seen to wait for a small answer while the socket changed hands; by weights: for
    which a worker let requests wait while its model was given others."""
    canary: list[float] = Field(default_factory=list)
    """The shares of its canary steps, in percent, as they were planned."""
    step: float | None = None
    """Seconds that each step holds; None: until it is promoted."""
    bake: float | None = None
    """Seconds of bake that were planned; None where there is none."""
    analysis: list[Verdict] = Field(default_factory=list)
    """How the candidate was judged, a canary step at a time and while it baked."""
    hooks: list[HookRun] = Field(default_factory=list)
    receipt: Receipt | None = None

    @property
    def phase(self) -> Phase:
        """The last phase entered."""
        return self.steps[-1].phase if self.steps else "preflight"


class Journal:
    """The journal of one host. Whoever changes it holds the lock, but for the rename of a rollback."""

    def __init__(self, host: Host) -> None:
        self._directory = host.state / "history"
        self._lock = host.state / "lock"

    @property
    def is_ours(self) -> bool:
        """Whether we may write it; others may look."""
        return os.access(self._directory, os.W_OK)

    def records(self) -> list[Record]:
        """All rollouts, oldest first."""
        return list(self.newest())[::-1]

    def newest(self) -> Iterator[Record]:
        """All rollouts, newest first; each is read when it is asked for, for a host may have seen thousands."""
        for path in sorted(self._directory.glob("[0-9]*.json"), reverse=True):
            with contextlib.suppress(OSError, ValidationError):
                yield Record.model_validate_json(path.read_bytes())

    def find(self, identifier: str) -> Record | None:
        """The rollout of that id."""
        return next((one for one in self.newest() if one.id == identifier), None)

    def last(self) -> Record | None:
        """The newest rollout."""
        return next(self.newest(), None)

    def last_of(self, kind: Kind, version: str) -> Record | None:
        """The newest rollout of this kind and version."""
        return next((one for one in self.newest() if one.kind == kind and one.version == version), None)

    def last_load(self) -> float | None:
        """How long the newest rollout that loaded a model waited for it, in seconds."""
        for record in self.newest():
            at = {step.phase: datetime.fromisoformat(step.at) for step in record.steps}
            took = (at["verify"] - at["start"]).total_seconds() if {"start", "verify"} <= at.keys() else 0.0
            if took > _LOADED:
                return took
        return None

    def unfinished(self) -> list[Record]:
        """The rollouts that have begun and not ended, oldest first; dead ones if the lock is free.

        They are among the newest: whoever begins one ends those first that a dead controller left.
        """
        return [one for one in islice(self.newest(), _RECENT) if one.outcome is None][::-1]

    def write(self, record: Record) -> None:
        """Put `record` on disk, durably, before what it announces is done."""
        self._write(f"{record.id}.json", record.model_dump_json(indent=2))

    def keep_before(self, identifier: str, before: Snapshot) -> None:
        """Keep on disk, until a rollout ends, what was counted before it; forget that of rollouts that never began."""
        wanted = {one.id for one in self.unfinished()}
        for path in self._directory.glob(f"*{_BEFORE}"):
            if path.stem not in wanted:
                path.unlink(missing_ok=True)
        self._write(f"{identifier}{_BEFORE}", dump(before))

    def before(self, identifier: str) -> Snapshot | None:
        """What was counted before that rollout; None where it was not kept."""
        try:
            return load((self._directory / f"{identifier}{_BEFORE}").read_bytes())
        except (OSError, ValidationError):
            return None

    def forget_before(self, identifier: str) -> None:
        """It has ended, and its receipt is in its record."""
        (self._directory / f"{identifier}{_BEFORE}").unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        path = self._directory / name
        temporary = path.with_suffix(".new")
        try:
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(self._directory)
        except OSError as error:
            raise GlmError(f"cannot write the journal {path}: {error.strerror}", hint="is the disk full?") from error

    def new_id(self) -> str:
        """An identifier that sorts by time."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        taken = {path.stem for path in self._directory.glob(f"{stamp}*.json")}
        return next(name for name in (f"{stamp}-{n:02}" for n in range(1, 1000)) if name not in taken)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the rollout lock; raises Locked at once if another process does. Dies with the process."""
        self._make()
        with self._lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                under_way = self.unfinished()
                what = "; ".join(f"{one.kind} of {one.version}, in {one.phase}" for one in under_way) or "starting"
                raise Locked(
                    f"another rollout holds the lock ({what})", hint="`glmctl status --watch` shows it"
                ) from error
            yield

    @property
    def is_locked(self) -> bool:
        """Whether a rollout is under way."""
        try:
            with self.lock():
                return False
        except Locked:
            return True

    @contextlib.contextmanager
    def switching(self) -> Iterator[None]:
        """Hold, for a moment, the right to rename `live` or to enter the phase that makes it irreversible."""
        self._make()
        with (self._lock.with_name("switch")).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock.touch()
        except OSError as error:
            raise GlmError(
                f"cannot write to {self._lock.parent}: {error.strerror}", hint="run it as root, or with --user"
            ) from error


class Entry:
    """The rollout that this process carries out: every change goes to disk first."""

    def __init__(self, journal: Journal, record: Record) -> None:
        self.journal = journal
        self.record = record
        self._began = time.monotonic() - (seconds_between(record.started_at, now()) or 0.0)

    def enter(self, phase: Phase) -> None:
        """Note that `phase` begins."""
        self.record.steps.append(Step(phase=phase, at=now()))
        self.journal.write(self.record)

    def end(self, outcome: str, *, reason: str | None = None, receipt: Receipt | None = None) -> None:
        """Note how it ended."""
        self.record.outcome = outcome
        self.record.reason = reason
        self.record.receipt = receipt
        self.record.ended_at = now()
        self.record.seconds = round(time.monotonic() - self._began, 3)
        self.journal.write(self.record)
        self.journal.forget_before(self.record.id)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, as fsync makes a file's contents."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def now() -> str:
    """The time of day, UTC, as journals write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def seconds_between(begin: str, end: str) -> float | None:
    """Seconds from one time of a journal to another, not below 0; None where one of them is no time."""
    try:
        return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds())
    except (ValueError, TypeError):
        return None


def begin(journal: Journal, kind: Kind, version: str, slot: str, strategy: Strategy = "overlap") -> Entry:
    """A new entry; it is written with its first phase."""
    record = Record(id=journal.new_id(), kind=kind, strategy=strategy, version=version, slot=slot, started_at=now())
    return Entry(journal, record)
