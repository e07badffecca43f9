"""Errors with a hint and an exit code. They are raised deep and printed once, in `cli.py`."""

from __future__ import annotations


class GlmError(Exception):
    """A failure that has no class of its own."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """`hint` is what to do about it."""
        super().__init__(message)
        self.hint = hint


class Refused(GlmError):
    """Preflight refused it; nothing was changed."""

    exit_code = 3


class NotReady(GlmError):
    """The candidate did not become ready; the live version was not touched."""

    exit_code = 4


class RolledBack(GlmError):
    """The new version had served clients and was rolled back."""

    exit_code = 5


class DrainCut(GlmError):
    """The rollout is done, but the drain deadline ended requests that were in flight."""

    exit_code = 6

    @classmethod
    def of(cls, in_flight: int, slot: str, drain: float) -> DrainCut:
        """Return the error for `in_flight` requests of `slot` after `drain` seconds."""
        return cls(
            f"the drain deadline of {drain:g} s cut {in_flight} request{'' if in_flight == 1 else 's'} of {slot}",
            hint="--drain sets a longer deadline",
        )

    @classmethod
    def of_frozen(cls, lost: int, slot: str) -> DrainCut:
        """Return the error for requests of `slot` that were lost with frozen workers, which were killed."""
        were = "request was" if lost == 1 else "requests were"
        return cls(f"{lost} {were} lost with frozen workers of {slot}, which were killed")


class Locked(GlmError):
    """Another rollout is in progress."""

    exit_code = 7


class Unrecorded(GlmError):
    """The journal cannot be written."""


class Interrupted(GlmError):
    """Ctrl-C, SIGTERM or SIGHUP ended a rollout; the message tells in which state."""

    exit_code = 130


class Degraded(Exception):
    """The candidate serves clients and must not do so any longer. The rollout raises RolledBack for it.

    `is_undone`: another process has made the old slot live already, and run the hooks.
    `by_operator`: `abort` or `rollback` asked for it, and the candidate need not be worse.
    """

    def __init__(self, reason: str, *, is_undone: bool = False, by_operator: bool = False) -> None:
        super().__init__(reason)
        self.is_undone = is_undone
        self.by_operator = by_operator
