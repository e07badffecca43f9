"""Conversations on disk: one SQLite file, whose rows belong to browsers.

What a browser may keep is bounded in number, size and age, and so is the file: a browser without a cookie is given a
new identifier, so that bounds per browser alone would not limit it.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Bounds", "ConversationStore", "Summary"]

TABLE = """
CREATE TABLE IF NOT EXISTS conversations (
    browser TEXT NOT NULL, id TEXT NOT NULL, title TEXT NOT NULL, updated REAL NOT NULL, document BLOB NOT NULL,
    PRIMARY KEY (browser, id)
);
CREATE INDEX IF NOT EXISTS by_age ON conversations (updated);
CREATE INDEX IF NOT EXISTS by_browser ON conversations (browser, updated);
"""
# Rows ordered from the newest; those are deleted with which the sum exceeds the bound.
BEYOND = """
DELETE FROM conversations WHERE rowid IN (
    SELECT rowid FROM (
        SELECT rowid, SUM(length(document)) OVER newest AS bytes, ROW_NUMBER() OVER newest AS number
        FROM conversations WHERE browser = :browser OR :browser IS NULL
        WINDOW newest AS (ORDER BY updated DESC, rowid DESC ROWS UNBOUNDED PRECEDING)
    ) WHERE bytes > :bytes OR number > :count
)
"""


@dataclass(frozen=True)
class Bounds:
    """What is kept; older conversations are deleted first."""

    count: int = 100  # conversations of one browser
    size: int = 64 << 20  # bytes of one browser
    total: int = 1 << 30  # bytes of all browsers
    age: float = 90 * 86_400.0  # seconds since the last change


@dataclass(frozen=True)
class Summary:
    """A conversation in the list of a browser."""

    id: str
    title: str
    updated: float  # Unix time


class ConversationStore:
    """The conversations of all browsers in the file `path`, or in memory without one; thread-safe.

    Methods raise sqlite3.Error, for instance if the disk is full.
    """

    def __init__(
        self, path: Path | None = None, bounds: Bounds | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=5.0)
        self._database.execute("PRAGMA secure_delete = ON")  # what was deleted is overwritten
        self._database.executescript(TABLE)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def save(self, browser: str, identifier: str, title: str, document: bytes) -> bool:
        """Store a conversation and delete older ones beyond the bounds; return False if it alone exceeds them."""
        if len(document) > min(self._bounds.size, self._bounds.total):
            return False
        with self._lock, self._database as database:
            database.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?, ?) ON CONFLICT (browser, id)"
                " DO UPDATE SET title = excluded.title, updated = excluded.updated, document = excluded.document",
                (browser, identifier, title, self._clock(), document),
            )
            database.execute("DELETE FROM conversations WHERE updated < ?", (self._clock() - self._bounds.age,))
            bounds = {"count": self._bounds.count, "bytes": self._bounds.size}
            database.execute(BEYOND, {"browser": browser, **bounds})
            [total] = database.execute("SELECT SUM(length(document)) FROM conversations").fetchone()
            if (total or 0) > self._bounds.total:
                database.execute(BEYOND, {"browser": None, "count": 1 << 62, "bytes": self._bounds.total})
        return True

    def load(self, browser: str, identifier: str) -> bytes | None:
        """Return a conversation's document; None if this browser has no such one."""
        with self._lock:
            row = self._row(browser, identifier)
        return bytes(row[0]) if row else None

    def list(self, browser: str) -> list[Summary]:
        """Return the conversations of a browser, the latest first."""
        oldest = self._clock() - self._bounds.age
        with self._lock:
            rows = self._database.execute(
                "SELECT id, title, updated FROM conversations WHERE browser = ? AND updated >= ?"
                " ORDER BY updated DESC, rowid DESC",
                (browser, oldest),
            ).fetchall()
        return [Summary(*row) for row in rows]

    def delete(self, browser: str, identifier: str) -> None:
        """Delete a conversation, if this browser has it."""
        with self._lock, self._database as database:
            database.execute("DELETE FROM conversations WHERE browser = ? AND id = ?", (browser, identifier))

    def _row(self, browser: str, identifier: str) -> tuple[bytes] | None:
        row: tuple[bytes] | None = self._database.execute(
            "SELECT document FROM conversations WHERE browser = ? AND id = ? AND updated >= ?",
            (browser, identifier, self._clock() - self._bounds.age),
        ).fetchone()
        return row
