"""The frame around every rollout: it ends the record, whatever ended the rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deploy.errors import Degraded, DrainCut, NotReady, Refused, RolledBack
from deploy.rollout import hooks
from deploy.rollout.plan import Rollout

__all__ = ["Undo", "recorded"]

Undo = Callable[[Rollout], bool]
"""Restores the old version, as far as the rollout has come. Returns False if the new version stays live instead."""

_OUTCOMES = {Refused: "refused", NotReady: "not ready", KeyboardInterrupt: "interrupted"}


@contextmanager
def recorded(rollout: Rollout, undo: Undo) -> Iterator[None]:
    """Run the phases in the block and end the record.

    Without an exception the outcome is "done"; with DrainCut too, which is raised. Degraded is undone, the on_rollback
    hooks run, the outcome is "rolled back", and RolledBack is raised. Any other exception is undone and raised; the
    outcome is "refused", "not ready", "interrupted" or "failed", and "done" if `undo` returns False.

    If `undo` fails the record stays open, as after a crash: the next command completes it (`recovery.py`).
    """
    try:
        yield
    except DrainCut as cut:
        rollout.end("done", reason=str(cut))
        raise
    except Degraded as degraded:
        if not degraded.is_undone:
            undo(rollout)
            hooks.run(rollout, "on_rollback")
        rollout.end("rolled back", reason=str(degraded))
        raise RolledBack(f"{rollout.plan.version} was rolled back: {degraded}") from degraded
    except BaseException as error:
        rollout.end(_outcome(error) if undo(rollout) else "done", reason=_reason(error))
        raise
    else:
        rollout.end("done")


def _outcome(error: BaseException) -> str:
    return next((outcome for kind, outcome in _OUTCOMES.items() if isinstance(error, kind)), "failed")


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted from the keyboard"
    return str(error) or type(error).__name__
