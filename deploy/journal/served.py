"""Which versions have served, derived from the records: the one to go back to, and those that must not come back."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.journal.record import Record

__all__ = ["condemned", "last_condemned", "previous_version"]


def previous_version(records: Sequence[Record], live: str) -> str | None:
    """Return the version that was live last before `live` and is not condemned; None without one.

    `records`: all rollouts, oldest first.
    """
    for record in reversed(records):
        if _was_live(record) or (record.outcome is None and record.version == live):
            for version in (record.version, record.previous):
                if version not in {None, live} and not condemned(records, version or ""):
                    return version
    return None


def condemned(records: Sequence[Record], version: str) -> Record | None:
    """Return the rollout in which `version` was last found worse or dead, if it was not made live again since.

    What the operator rolled back, or aborted, was not found worse; nor was what `deploy --again` loaded again.
    """
    for record in reversed(records):
        if record.version != version or record.previous == version:
            continue
        if record.outcome == "rolled back" and not record.by_operator:
            return record
        if record.outcome == "done":
            return record if any(verdict.outcome == "worse" for verdict in record.analysis) else None
    return None


def last_condemned(records: Sequence[Record], live: str) -> Record | None:
    """Return the newest rollout that condemned a version, other than `live`, which still is."""
    for record in reversed(records):
        if record.version != live and (found := condemned(records, record.version)):
            return found
    return None


def _was_live(record: Record) -> bool:
    """Return whether the version went live: its rollout is done, or has come to its bake, however that ended."""
    return record.outcome == "done" or any(step.phase == "bake" for step in record.steps)
