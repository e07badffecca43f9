"""Which lines of the log an operator asks for: matches for journalctl, and the same of a log that is text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from service.contract.generations import all_generations
from service.contract.printable import word
from service.contract.route import worker_name
from service.contract.slots import SLOTS

__all__ = ["Head", "Selection", "slots_of_processes", "workers"]

_LINE = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4})\] \[(\d+)\] \[([A-Z]+)\] ")
_DATES = "%Y-%m-%d %H:%M:%S %z"
_MAX_ID = 128  # characters


class Head(NamedTuple):
    """The begin of a line of a log that is text, and the rest of it."""

    at: datetime
    pid: int
    level: str
    text: str

    @classmethod
    def parse(cls, line: str) -> Head | None:
        """Return None for a line without a head, as in a traceback, or of another program."""
        if begin := _LINE.match(line):
            return cls(datetime.strptime(begin[1], _DATES), int(begin[2]), begin[3], line[begin.end() :].rstrip("\n"))
        return None


@dataclass(frozen=True)
class Selection:
    """Lines of a slot, of a request, and of the time of a rollout; None: of all.

    The lines of `rollout`, which glmctl wrote, are among them whatever the slot is.
    """

    slot: str | None = None
    request: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    rollout: str | None = None

    def journalctl(self, *, user: bool, follow: bool, as_json: bool) -> list[str]:
        """Return the command that shows them in the journal."""
        times = [f"--{name}=@{at.timestamp():.3f}" for name, at in self._times.items() if at]
        return [
            "journalctl",
            *(["--user"] if user else []),
            *([] if self._has_rollout else [f"--unit={unit}" for unit in self._units]),
            *times,
            *(["--follow"] if follow else []),
            *(["--output=json"] if as_json else []),
            *([f"REQUEST_ID={word(self.request, _MAX_ID)}"] if self.request else []),
            *(self._matches(user=user) if self._has_rollout else []),
        ]

    def select(self, lines: Iterable[str], slots: Mapping[int, str]) -> Iterator[str]:
        """Yield them of a log in the service's text format; `slots` by pid.

        A line without a time, as in a traceback, goes with the one before it. Times in the log are whole seconds.
        """
        selected = self == Selection()
        for line in lines:
            if head := Head.parse(line):
                is_of_rollout = self._has_rollout and head.text.startswith(f"rollout {self.rollout}: ")
                selected = is_of_rollout or (
                    self.slot in (None, slots.get(head.pid))
                    and self._names_request(head.text)
                    and (self.since is None or head.at > self.since - timedelta(seconds=1))
                    and (self.until is None or head.at <= self.until)
                )
            if selected:
                yield line

    def _names_request(self, text: str) -> bool:
        if self.request is None:
            return True
        name = re.escape(word(self.request, _MAX_ID))
        return re.search(rf"(?:, id|request) {name}(?:$|: | )", text) is not None

    def _matches(self, *, user: bool) -> list[str]:
        """Return the matches of the units' lines, as --unit makes them, or the rollout's: it allows no alternative."""
        prefix = "USER_" if user else ""
        terms = [[f"_SYSTEMD_{prefix}UNIT={unit}"] for unit in self._units]
        terms += [[f"{prefix}UNIT={unit}", *([] if user else ["_PID=1"])] for unit in self._units]
        terms += [[f"ROLLOUT={self.rollout}"]]
        return [word for number, term in enumerate(terms) for word in (["+"] if number else []) + term]

    @property
    def _has_rollout(self) -> bool:
        return self.rollout is not None and self.request is None

    @property
    def _units(self) -> list[str]:
        return [f"glm@{slot}.service" for slot in ([self.slot] if self.slot else SLOTS)]

    @property
    def _times(self) -> dict[str, datetime | None]:
        return {"since": self.since, "until": self.until}


def slots_of_processes(runtime: Path) -> dict[int, str]:
    """Return the slot of each master and worker whose generation has left a record, by pid."""
    found = {}
    for one in all_generations(runtime):
        found[one.master] = one.slot
        found |= {worker.pid: one.slot for worker in one.workers}
    return found


def workers(runtime: Path) -> dict[int, str]:
    """Return the name of each worker whose generation has left a record, by pid."""
    return {
        worker.pid: worker_name(one.slot, one.generation, worker.pid)
        for one in all_generations(runtime)
        for worker in one.workers
    }
