"""The frame around every rollout: it ends the record, whatever ended the rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deploy.errors import Degraded, DrainCut, GlmError, Interrupted, NotReady, Refused, RolledBack
from deploy.rollout import hooks
from deploy.rollout.plan import Rollout

__all__ = ["Undo", "recorded"]

Undo = Callable[[Rollout], bool]
"""Restores the old version, as far as the rollout has come. Returns False if the new version stays live instead."""

_OUTCOMES = {Refused: "refused", NotReady: "not ready", KeyboardInterrupt: "interrupted"}
_RESUME = "`glmctl resume` tries again; a timer does every 15 s"


@contextmanager
def recorded(rollout: Rollout, undo: Undo) -> Iterator[None]:
    """Run the phases in the block and end the record.

    Without an exception the outcome is "done"; with DrainCut too, which is raised. Degraded is undone, the on_rollback
    hooks run, the outcome is "rolled back", and RolledBack is raised. Any other exception is undone and raised, Ctrl-C
    as Interrupted; the outcome is "refused", "not ready", "interrupted" or "failed".

    If `undo` returns False the outcome is "done", and GlmError is raised for Degraded. If it fails, GlmError is raised
    and the record stays open, as after a crash (`recovery.py`).
    """
    try:
        yield
    except DrainCut as cut:
        rollout.end("done", reason=str(cut))
        raise
    except Degraded as degraded:
        rollout.record.by_operator = degraded.by_operator
        if not degraded.is_undone:
            if not _undo(rollout, undo, degraded):
                rollout.end("done", reason=f"{degraded}; {rollout.kept}")
                raise GlmError(f"{rollout.plan.version} is to be rolled back: {degraded}; {rollout.kept}") from degraded
            hooks.run(rollout, "on_rollback")
        hooks.finish(rollout)
        rollout.end("rolled back", reason=str(degraded))
        raise RolledBack(f"{rollout.plan.version} was rolled back: {degraded}") from degraded
    except BaseException as error:
        hooks.stop(rollout)
        phase = rollout.record.phase
        outcome = _outcome(error) if _undo(rollout, undo, error) else "done"
        rollout.end(outcome, reason="; ".join(filter(None, (_reason(error), rollout.kept))))
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"interrupted in {phase}: {_state(rollout)}") from error
        raise
    else:
        rollout.end("done")
    finally:
        rollout.digests.stop()


def _undo(rollout: Rollout, undo: Undo, cause: BaseException) -> bool:
    """Undo the rollout; raises GlmError with both reasons if that fails."""
    phase = rollout.record.phase
    try:
        return undo(rollout)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted while the {rollout.record.kind} was undone: {_state(rollout)}", hint=_RESUME
        ) from error
    except Exception as error:
        raise GlmError(
            f"{_reason(cause)}; and what was done until {phase} cannot be undone yet: {_reason(error)}", hint=_RESUME
        ) from error


def _state(rollout: Rollout) -> str:
    """Return which version is live, and whether the record has ended, as text."""
    record, slots = rollout.record, rollout.context.slots
    live = f"{slots.version(slots.live)} is live in {slots.live}" if slots.live else "nothing is live"
    end = {None: "is not finished", "done": "is done"}.get(record.outcome, "was undone")
    return f"{live}, the {record.kind} of {record.version} {end}"


def _outcome(error: BaseException) -> str:
    return next((outcome for kind, outcome in _OUTCOMES.items() if isinstance(error, kind)), "failed")


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted from the keyboard"
    return str(error) or type(error).__name__
