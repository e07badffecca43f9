"""Files: their bytes lie in files/ under their id, their rows in the database."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from sqlalchemy import Connection, delete, func, or_, select

from service.batches.database import Database, usable
from service.batches.tables import ENDED, batches, files
from service.chat.errors import ApiError, invalid

__all__ = ["Draft", "File", "Files", "Page"]

KEPT = 30 * 24 * 3600  # seconds that an uploaded file is kept when the client does not say; OpenAI's own


@dataclass(frozen=True)
class File:
    """What is known of a file; times in seconds since the epoch."""

    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str

    def document(self) -> dict[str, Any]:
        """As OpenAI has it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(frozen=True)
class Page:
    """A part of a list, and whether there is more of it."""

    data: list[dict[str, Any]]
    has_more: bool

    def document(self) -> dict[str, Any]:
        """As OpenAI has it."""
        return {
            "object": "list",
            "data": self.data,
            "first_id": self.data[0]["id"] if self.data else None,
            "last_id": self.data[-1]["id"] if self.data else None,
            "has_more": self.has_more,
        }


class Draft:
    """A file that is being written and is not there yet; closed without `keep` it never was.

    Its writer holds a lock on it, by which a sweep tells it from what a dead writer left.
    """

    def __init__(self, directory: Path) -> None:
        self.id = f"file-{uuid.uuid4().hex}"
        self.size = 0
        self._directory = directory / "files"
        self._path = self._directory / self.id
        self._kept = False
        with usable(directory):
            self._directory.mkdir(mode=0o750, exist_ok=True)
            self._file = self._path.open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._path.stat()  # a sweep may have been faster than our lock: then this fails

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing, unless it is kept."""
        if not self._kept:
            with suppress(OSError):
                self._path.unlink()
        with suppress(OSError):  # what cannot be flushed belongs to nobody
            self._file.close()

    def write(self, data: bytes) -> None:
        """Add to its end."""
        with usable(self._directory.parent):
            self._file.write(data)
        self.size += len(data)

    def publish(self, connection: Connection, filename: str, purpose: str, expires_at: int | None) -> File:
        """Make it a file, if the transaction succeeds: the bytes are on the disk before the row is."""
        with usable(self._directory.parent):
            self._file.flush()
            os.fsync(self._file.fileno())
            directory = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        file = File(self.id, self.size, int(time.time()), expires_at, filename, purpose)
        connection.execute(files.insert().values(file.__dict__))
        return file

    def keep(self) -> None:
        """The transaction succeeded."""
        self._kept = True


class Files:
    """What is asked of files; everything blocks and raises Unavailable, unknown ids ApiError 404."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def draft(self) -> Draft:
        """Begin to write a file."""
        return Draft(self.database.directory)

    def add(self, draft: Draft, filename: str, purpose: str, seconds: int | None = None) -> File:
        """Take in what was written."""
        with self.database.writing() as connection:
            file = draft.publish(connection, filename, purpose, int(time.time()) + (seconds or KEPT))
        draft.keep()
        return file

    def get(self, file_id: str) -> File:
        """One file."""
        with self.database.reading() as connection:
            return find(connection, file_id)

    def list(self, *, after: str | None, limit: int, newest_first: bool, purpose: str | None) -> Page:
        """Files by creation."""
        with self.database.reading() as connection:
            wanted = select(files).where(_not_expired())
            if purpose is not None:
                wanted = wanted.where(files.c.purpose == purpose)
            if after is not None:
                last = connection.execute(select(files.c.number).where(files.c.id == after)).scalar()
                if last is None:
                    raise invalid(f"no such file: {after[:100]}", param="after")
                wanted = wanted.where(files.c.number < last if newest_first else files.c.number > last)
            order = files.c.number.desc() if newest_first else files.c.number
            rows = connection.execute(wanted.order_by(order).limit(limit + 1)).all()
        return Page([_file(row).document() for row in rows[:limit]], len(rows) > limit)

    def read(self, file_id: str) -> BinaryIO:
        """Its bytes, as long as the reader likes, whoever deletes the file meanwhile; the id must be a known one."""
        with usable(self.database.directory):
            try:
                return self.path(file_id).open("rb")
            except FileNotFoundError as error:
                raise ApiError(404, f"the bytes of {file_id} are gone", param="file_id", code="not_found") from error

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file lie that the database knows."""
        return self.database.directory / "files" / file_id

    def delete(self, file_id: str) -> None:
        """Take away a file that no unfinished batch reads."""
        with self.database.writing() as connection:
            find(connection, file_id)
            reader = connection.execute(
                select(batches.c.id).where(batches.c.input_file_id == file_id, batches.c.status.not_in(ENDED))
            ).scalar()
            if reader is not None:
                raise invalid(f"{reader} still reads this file; cancel it or wait for its end", code="file_in_use")
            connection.execute(delete(files).where(files.c.id == file_id))
        with suppress(OSError):  # a sweep takes away what stays
            self.path(file_id).unlink()

    def sweep(self) -> None:
        """Take away files that expired, and bytes without a row: of writers that died, of files deleted by half."""
        in_use = select(batches.c.input_file_id).where(batches.c.status.not_in(ENDED))
        with self.database.writing() as connection:
            connection.execute(delete(files).where(~_not_expired(), files.c.id.not_in(in_use)))
        with usable(self.database.directory):
            found: Sequence[Path] = sorted((self.database.directory / "files").glob("file-*"))
        for path in found:
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else its writer lives
                with self.database.reading() as connection:
                    known = connection.execute(select(func.count()).where(files.c.id == path.name)).scalar()
                if not known:
                    path.unlink()


def find(connection: Connection, file_id: str) -> File:
    """One file, in a transaction; raises ApiError 404."""
    row = connection.execute(select(files).where(files.c.id == file_id, _not_expired())).first()
    if row is None:
        raise ApiError(404, f"no such file: {file_id[:100]}", param="file_id", code="not_found")
    return _file(row)


def _file(row: Any) -> File:
    return File(row.id, row.bytes, row.created_at, row.expires_at, row.filename, row.purpose)


def _not_expired() -> Any:
    return or_(files.c.expires_at.is_(None), files.c.expires_at > int(time.time()))
