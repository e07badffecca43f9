"""What can go wrong, as plain facts with a hint and an exit code. Raised deep, printed once, at the edge."""

from __future__ import annotations


class GlmError(Exception):
    """Something went wrong that nobody foresaw more precisely."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class Refused(GlmError):
    """Preflight said no; nothing was touched."""

    exit_code = 3


class NotReady(GlmError):
    """The candidate could not become ready; the live slot was not touched."""

    exit_code = 4


class RolledBack(GlmError):
    """The new version was live and is so no more."""

    exit_code = 5


class DrainCut(GlmError):
    """Done, but the drain deadline ended requests that were still running."""

    exit_code = 6

    @classmethod
    def of(cls, in_flight: int, slot: str, drain: float) -> DrainCut:
        """So many requests of `slot` were still running after `drain` seconds."""
        return cls(
            f"the drain deadline of {drain:g} s cut {in_flight} request(s) of {slot}",
            hint="--drain gives long answers more time",
        )


class Locked(GlmError):
    """Another rollout is under way."""

    exit_code = 7


class Degraded(Exception):
    """The candidate has requests and should have them no more, or has none any more. The rollout turns it to 5."""

    def __init__(self, reason: str, *, by_operator: bool = False) -> None:
        super().__init__(reason)
        self.by_operator = by_operator
