"""Which lines of the servers' log an operator asks for: matches for journalctl, and the same of a log that is text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from service.contract.generations import all_generations
from service.contract.slots import SLOTS

__all__ = ["Selection", "slots_of_processes"]

_LINE = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4})\] \[(\d+)\] ")
_DATES = "%Y-%m-%d %H:%M:%S %z"


@dataclass(frozen=True)
class Selection:
    """Lines of a slot, of a request, and of the time of a rollout; None: of all."""

    slot: str | None = None
    request: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def journalctl(self, *, user: bool, follow: bool, as_json: bool) -> list[str]:
        """Return the command that shows them in the journal."""
        units = [f"--unit=glm@{slot}.service" for slot in ([self.slot] if self.slot else SLOTS)]
        times = [f"--{name}=@{at.timestamp():.3f}" for name, at in self._times.items() if at]
        return [
            "journalctl",
            *(["--user"] if user else []),
            *units,
            *times,
            *(["--follow"] if follow else []),
            *(["--output=json"] if as_json else []),
            *([f"REQUEST_ID={self.request}"] if self.request else []),
        ]

    def select(self, lines: Iterable[str], slots: Mapping[int, str]) -> Iterator[str]:
        """Yield them of a log in the service's text format; `slots` by pid.

        A line without a time, as in a traceback, goes with the one before it. Times in the log are whole seconds.
        """
        selected = self == Selection()
        for line in lines:
            if begin := _LINE.match(line):
                at = datetime.strptime(begin[1], _DATES)
                selected = (
                    self.slot in (None, slots.get(int(begin[2])))
                    and (self.request is None or f" id {self.request}" in line or f"request {self.request} " in line)
                    and (self.since is None or at > self.since - timedelta(seconds=1))
                    and (self.until is None or at <= self.until)
                )
            if selected:
                yield line

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
