"""Time measurement of the parts of a load."""

from __future__ import annotations

import time

__all__ = ["LoadTimes"]

_PARTS = {
    "importing": "imports",
    "reading": "reading",
    "reading weights": "reading",
    "building the model": "building",
    "warming up": "warming up",
    "checking": "checking",
}


class LoadTimes:
    """Adds up the seconds of a load, by part. `imports`: seconds of imports in the master, before the fork."""

    def __init__(self, imports: float) -> None:
        self._seconds = {"imports": imports}
        self._part = "imports"
        self._since = time.monotonic()

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part that has begun, rounded to milliseconds."""
        return {part: round(seconds, 3) for part, seconds in self._seconds.items()}

    def enter(self, step: str) -> None:
        """Begin `step`: the time since the last call is added to the part of the step before it."""
        now = time.monotonic()
        self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._since
        self._part, self._since = _PARTS.get(step, "building"), now
