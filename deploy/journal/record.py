"""The record of one rollout, as the journal stores it and `glmctl history ID --json` prints it."""

from __future__ import annotations

import os
import pwd
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from deploy.analysis.verdict import Verdict
from deploy.journal.receipt import Receipt
from deploy.policy import Limits
from service.contract import fields, regular_file
from service.contract.slots import SLOTS

__all__ = [
    "BEFORE_CUTOVER",
    "OPERATOR_VARIABLE",
    "HookRun",
    "Kind",
    "Phase",
    "Record",
    "RecordedLimits",
    "Step",
    "Strategy",
    "now",
    "operator",
    "seconds_between",
]

Kind = Literal["deploy", "rollback", "reload"]
Strategy = Literal["overlap", "swap", "weights"]
Phase = Literal[
    "preflight", "prepare", "vacate", "start", "verify", "canary", "cutover", "bake", "retire", "rollback", "reload"
]
BEFORE_CUTOVER: tuple[Phase, ...] = ("preflight", "prepare", "vacate", "start", "verify", "canary")


OPERATOR_VARIABLE = "GLM_OPERATOR"
"""Names who begins a rollout, where that is not the user of the system."""

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


def operator() -> str | None:
    """Return who runs this command: GLM_OPERATOR, who used sudo, or the user; None if none of them has a name."""
    candidates = [os.environ.get(OPERATOR_VARIABLE), os.environ.get("SUDO_USER")]
    with suppress(KeyError):  # a user without an entry
        candidates.append(pwd.getpwuid(os.getuid()).pw_name)
    return next((name for name in candidates if name and _NAME.fullmatch(name)), None)


class Step(BaseModel):
    """A phase and when it was entered (UTC)."""

    phase: Phase
    at: str


class HookRun(BaseModel):
    """One run of a hook's command."""

    when: str
    command: str
    code: int | None
    """None if it was killed at its timeout."""
    seconds: float
    output: str = Field(validation_alias=AliasChoices("output", "said"))  # earlier records: said

    @property
    def result(self) -> str:
        """How it ended, as text."""
        return f"ended with {self.code}" if self.code is not None else f"was killed after {self.seconds:.0f} s"


class RecordedLimits(Limits):
    """The limits of a rollout; a record of a later version may have more of them."""

    model_config = ConfigDict(extra="ignore")


class Record(BaseModel):
    """One rollout, as `glmctl history ID --json` prints it. `outcome` is None until it has ended."""

    id: str
    kind: Kind
    strategy: Strategy = "overlap"
    strategy_reason: str | None = None
    """Why glmctl chose the strategy; None if the operator did."""
    version: str
    slot: str
    operator: str | None = None
    """Who began it; None in earlier records."""
    previous: str | None = None
    """The version that was live before."""
    previous_slot: str | None = None
    slot_held: str | None = None
    """The text of the slot's symlink before, which is restored if the candidate fails."""
    started_at: str
    ended_at: str | None = None
    seconds: float | None = None
    steps: list[Step] = Field(default_factory=list)
    outcome: str | None = None
    reason: str | None = None
    by_operator: bool = False
    """Whether it was rolled back by `abort` or `rollback`, not by the analysis or a dead candidate."""
    switch_ms: float | None = None
    """From the rename of `live` to the first response of that slot through the public socket."""
    pause_ms: float | None = None
    """The longest wait of a probe's request during the cutover; with the strategy weights the longest time for which a
    worker held requests back."""
    canary: list[float] = Field(default_factory=list)
    """The planned canary steps, in percent."""
    step: float | None = None
    """The planned seconds of each canary step; None: until it is promoted."""
    bake: float | None = None
    """The planned seconds of bake; None without one."""
    drain: float = 120.0
    """How many seconds requests of the old slot may take to finish."""
    keep_warm: float = 0.0
    """How many seconds the old slot stays loaded after the bake."""
    limits: RecordedLimits | None = None
    """What the candidate is judged by; None without an analysis."""
    load: dict[str, float] = Field(default_factory=dict)
    """Seconds of each part of the candidate's load: imports, reading, building, warming up, checking."""
    digests: float | None = None
    """Seconds for which the release's files were compared with their digests, beside the load; None: not needed."""
    staged: str | None = None
    """With the strategy weights: the memory that the new weights were copied from while requests waited."""
    analysis: list[Verdict] = Field(default_factory=list)
    """The verdict on each canary step, and on the bake."""
    hooks: list[HookRun] = Field(default_factory=list)
    receipt: Receipt | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record; raises OSError, and ValueError if it is damaged or of another file."""
        record = cls.model_validate(fields.parse(regular_file.read(path)))
        if record.id != path.stem:
            raise ValueError(f"its id is {record.id[:100]!r}")
        if record.slot not in SLOTS or record.previous_slot not in {None, *SLOTS}:
            raise ValueError("it names a slot that does not exist")
        if record.outcome is None and not record.steps:
            raise ValueError("it has no steps")
        for moment in (record.started_at, *(step.at for step in record.steps), record.ended_at):
            if moment is not None and datetime.fromisoformat(moment).tzinfo is None:
                raise ValueError(f"{moment[:100]} has no time zone")
        return record

    @property
    def phase(self) -> Phase:
        """The last phase that was entered."""
        return self.steps[-1].phase if self.steps else "preflight"

    @property
    def seconds_in_phase(self) -> float:
        """Seconds since the last phase was entered, by the clock of the host."""
        return seconds_between(self.steps[-1].at, now()) or 0.0 if self.steps else 0.0

    @property
    def seconds_unwatched(self) -> float | None:
        """Seconds that remain of a bake; None in another phase."""
        return max(0.0, (self.bake or 0.0) - self.seconds_in_phase) if self.phase == "bake" else None


def now() -> str:
    """Return the time as records contain it: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def seconds_between(begin: str, end: str) -> float | None:
    """Return the seconds from one time of a record to another, at least 0; None if one of them is malformed."""
    try:
        return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds())
    except (ValueError, TypeError):
        return None
