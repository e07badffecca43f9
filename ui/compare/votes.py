"""Votes on pairs of answers, in a SQLite file beside the conversations; neither questions nor answers are in it."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CHOICES", "Tally", "VoteStore", "open_votes"]

CHOICES = ("first", "second", "equal", "neither")
TABLE = """
CREATE TABLE IF NOT EXISTS votes (
    comparison TEXT PRIMARY KEY, browser TEXT NOT NULL, at REAL NOT NULL,
    one TEXT NOT NULL, other TEXT NOT NULL, choice TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS votes_by_browser ON votes (browser, at);
CREATE INDEX IF NOT EXISTS votes_by_age ON votes (at);
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tally:
    """The votes on a pair of versions."""

    one: str
    other: str
    better_one: int
    better_other: int
    equal: int
    neither: int


class VoteStore:
    """Votes of all browsers in the file `path`, or in memory without one; thread-safe.

    The latest `per_browser` votes of a browser and the latest `total` are kept. Methods raise sqlite3.Error.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        per_browser: int = 1000,
        total: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bounds = per_browser, total
        self._clock = clock
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=5.0)
        self._database.executescript(TABLE)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def vote(self, browser: str, comparison: str, versions: tuple[str, str], choice: str) -> None:
        """Store which answer of a comparison is better, one of CHOICES; a second vote replaces the first."""
        one, other = sorted(versions)  # a pair has one row, whichever was live
        if choice in {"first", "second"}:
            choice = "one" if versions[choice == "second"] == one else "other"
        per_browser, total = self._bounds
        with self._lock, self._database as database:
            database.execute(
                "INSERT OR REPLACE INTO votes VALUES (?, ?, ?, ?, ?, ?)",
                (comparison, browser, self._clock(), one, other, choice),
            )
            database.execute(
                "DELETE FROM votes WHERE rowid IN (SELECT rowid FROM votes WHERE browser = ?"
                " ORDER BY at DESC, rowid DESC LIMIT -1 OFFSET ?)",
                (browser, per_browser),
            )
            database.execute(
                "DELETE FROM votes WHERE rowid IN (SELECT rowid FROM votes"
                " ORDER BY at DESC, rowid DESC LIMIT -1 OFFSET ?)",
                (total,),
            )

    def tallies(self, limit: int = 20) -> list[Tally]:
        """Return the sums of the pairs voted on last, the latest first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT one, other, SUM(choice = 'one'), SUM(choice = 'other'), SUM(choice = 'equal'),"
                " SUM(choice = 'neither') FROM votes GROUP BY one, other ORDER BY MAX(at) DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [Tally(*row) for row in rows]


def open_votes() -> VoteStore:
    """Return the votes in the directory `ui` of GLM_STATE; without the variable or the directory, in memory."""
    state = os.environ.get("GLM_STATE")
    if state:
        path = Path(state, "ui", "votes.sqlite")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return VoteStore(path)
        except (OSError, sqlite3.Error) as error:
            logger.warning("votes are kept in memory until the page ends: %s: %s", path, error)
    return VoteStore()
