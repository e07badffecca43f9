"""The database's file in the state directory, which is examined without opening the database."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["DatabaseFile"]


class DatabaseFile:
    """`batches.db` in the state directory; it exists once the first file was uploaded."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "batches.db"

    def stamp(self) -> tuple[int, ...]:
        """Return a value that differs after every change by any process; empty without a database.

        It holds inode, time and size of the file and its write-ahead log: two system calls and no lock, whereas
        `PRAGMA data_version` needs a connection and a thread.
        """
        stamp: tuple[int, ...] = ()
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            with suppress(OSError):
                status = path.stat()
                stamp += (status.st_ino, status.st_mtime_ns, status.st_size)
        return stamp
