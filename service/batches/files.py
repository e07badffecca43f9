"""Files: their contents in files/, named by id, and their rows in the database."""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from sqlalchemy import Connection, delete, func, or_, select

from service.batches.database import Database, storage_errors
from service.batches.pages import Page
from service.batches.room import BLOCK, Stored, charged, require_quota
from service.batches.tables import ENDED, batches, files, visible
from service.chat.errors import ApiError, invalid
from service.fairness.client import NOBODY
from service.settings import Settings

__all__ = ["Draft", "File", "Files"]

DEFAULT_EXPIRY = 30 * 24 * 3600  # seconds until an upload expires, as in OpenAI's API


class File(NamedTuple):
    """The metadata of a file, in the order of _COLUMNS; times in seconds since the epoch."""

    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str

    def document(self) -> dict[str, Any]:
        """Return OpenAI's JSON object."""
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


_COLUMNS = [files.c[name] for name in File._fields]


class Draft:
    """A file being written, visible after `publish` only; `close` deletes it unless `keep` was called.

    The writer holds a lock (flock), so that a sweep does not delete it. `require` is called with the draft and the
    number of bytes before they are written, and raises ApiError if there is no room for them. `key` is that of its
    owner, None if that is unknown.
    """

    def __init__(self, directory: Path, key: str | None, require: Callable[[Draft, int], None]) -> None:
        self.id = f"file-{uuid.uuid4().hex}"
        self.key = key
        self.size = 0
        self.is_open = True
        self._require = require
        self._directory = directory / "files"
        self._path = self._directory / self.id
        self._kept = False
        with storage_errors(directory):
            self._directory.mkdir(mode=0o750, exist_ok=True)
            self._file = self._path.open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._path.stat()  # raises if a sweep deleted the file before it was locked

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and delete it unless it is kept."""
        self.is_open = False
        if not self._kept:
            with suppress(OSError):
                self._path.unlink()
        with suppress(OSError):  # bytes that cannot be flushed are of a deleted file
            self._file.close()

    def write(self, data: bytes) -> None:
        """Append data; raises ApiError 413 beyond a quota, and Unavailable."""
        self.require(len(data))
        with storage_errors(self._directory.parent):
            self._file.write(data)
        self.size += len(data)

    def require(self, more: int) -> None:
        """Raise ApiError 413 or Unavailable if there is no room for so many more bytes."""
        self._require(self, more)

    def publish(self, connection: Connection, filename: str, purpose: str, seconds: int | None) -> File:
        """Add the file's row in the given transaction, after its content was synced to disk.

        It expires after `seconds`; None: never.
        """
        with storage_errors(self._directory.parent):
            self._file.flush()
            os.fsync(self._file.fileno())
            directory = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        now = int(time.time())
        file = File(self.id, self.size, now, None if seconds is None else now + seconds, filename, purpose)
        connection.execute(files.insert().values(file._asdict() | {"key_hash": self.key}))
        return file

    def keep(self) -> None:
        """Keep the content; call it once the transaction of `publish` was committed."""
        self._kept = True


class Files:
    """The stored files. Every method blocks and raises Unavailable; unknown ids raise ApiError 404.

    `key` is `Client.key` of the request's client; a file of another key is unknown to it.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self._settings = settings
        self._uploads: list[Draft] = []  # of this process
        self._lock = threading.Lock()  # of the list

    def draft(self, key: str = NOBODY.key) -> Draft:
        """Create a draft of an upload, which the quotas limit; raises ApiError 413."""
        with self.database.reading() as connection:
            stored = _stored(connection, key)
        draft = Draft(self.database.directory, key, partial(self._require, stored))
        with self._lock:
            self._uploads = [draft, *(one for one in self._uploads if one.is_open)]
        return draft

    def output(self, key: str | None) -> Draft:
        """Create a draft of a batch's results: the quotas of its key count it, and do not refuse it."""
        return Draft(self.database.directory, key, lambda *_: self.database.require_room(self._settings.state_reserve))

    def _require(self, stored: Stored, draft: Draft, more: int) -> None:
        """Raise ApiError if an upload may not grow: by the quotas, with what other uploads have written so far."""
        self.database.require_room(self._settings.state_reserve)
        with self._lock:
            uploads = [one for one in self._uploads if one.is_open]
        pending = sum(charged(one.size) for one in uploads)
        of_key = sum(charged(one.size) for one in uploads if one.key == draft.key)
        require_quota(Stored(stored.all + pending, stored.of_key + of_key), more, self._settings)

    def require_quota(self, connection: Connection, key: str | None, more: int = 0) -> None:
        """Raise ApiError 413 if a key may not store `more` bytes, by what is stored now."""
        require_quota(_stored(connection, key), more, self._settings)

    def add(self, draft: Draft, filename: str, purpose: str, seconds: int | None = None) -> File:
        """Publish a draft; it expires after `seconds`, or DEFAULT_EXPIRY. Raises ApiError 413."""
        with self.database.writing() as connection:
            self.require_quota(connection, draft.key, charged(draft.size))
            file = draft.publish(connection, filename, purpose, seconds or DEFAULT_EXPIRY)
        draft.keep()
        return file

    def get(self, file_id: str, *, key: str = NOBODY.key) -> File:
        """Return the metadata of a file."""
        with self.database.reading() as connection:
            return find(connection, file_id, key)

    def list(
        self, *, after: str | int | None, limit: int, newest_first: bool, purpose: str | None, key: str = NOBODY.key
    ) -> Page:
        """List files by creation time; `after` is the id of the last file before them, or the number of its row."""
        with self.database.reading() as connection:
            query = select(files.c.number, *_COLUMNS).where(files.c.key_hash == key, _not_expired())
            if purpose is not None:
                query = query.where(files.c.purpose == purpose)
            if after is not None:
                last = after if isinstance(after, int) else _number(connection, after, key)
                query = query.where(files.c.number < last if newest_first else files.c.number > last)
            order = files.c.number.desc() if newest_first else files.c.number
            rows = connection.execute(query.order_by(order).limit(limit + 1)).all()
        has_more = len(rows) > limit
        found = [(number, File(*columns).document()) for number, *columns in rows[:limit]]
        return Page([document for _, document in found], found[-1][0] if found else None, has_more)

    def read(self, file_id: str) -> BinaryIO:
        """Open the content of a file whose id is in the database; it stays readable after the file is deleted."""
        with storage_errors(self.database.directory):
            try:
                return self.path(file_id).open("rb")
            except FileNotFoundError as error:
                raise ApiError(
                    404, f"the content of {file_id} is missing", param="file_id", code="not_found"
                ) from error

    def path(self, file_id: str) -> Path:
        """Return the path of the content of a file whose id is in the database."""
        return self.database.directory / "files" / file_id

    def delete(self, file_id: str, *, key: str = NOBODY.key) -> None:
        """Delete a file, also on a full disk; raises ApiError 400 if an unfinished batch reads it."""
        self.database.freeing(self._delete, file_id, key)

    def _delete(self, file_id: str, key: str) -> None:
        with self.database.writing() as connection:
            find(connection, file_id, key)
            reader = connection.execute(
                select(batches.c.id).where(batches.c.input_file_id == file_id, batches.c.status.not_in(ENDED))
            ).scalar()
            if reader is not None:
                raise invalid(f"{reader} reads this file; cancel the batch or wait for its end", code="file_in_use")
            connection.execute(delete(files).where(files.c.id == file_id))
        with suppress(OSError):  # the next sweep deletes it
            self.path(file_id).unlink()

    def _delete_expired(self) -> None:
        in_use = select(batches.c.input_file_id).where(batches.c.status.not_in(ENDED))
        with self.database.writing() as connection:
            connection.execute(delete(files).where(~_not_expired(), files.c.id.not_in(in_use)))

    def sweep(self) -> None:
        """Delete expired files, and content without a row, left by dead writers or interrupted deletions."""
        self.database.freeing(self._delete_expired)
        with storage_errors(self.database.directory):
            paths: Sequence[Path] = sorted((self.database.directory / "files").glob("file-*"))
        for path in paths:
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the writer holds its lock
                with self.database.reading() as connection:
                    has_row = connection.execute(select(func.count()).where(files.c.id == path.name)).scalar()
                if not has_row:
                    path.unlink()


def find(connection: Connection, file_id: str, key: str) -> File:
    """Return the metadata of a file of that key, within a transaction; raises ApiError 404."""
    query = select(*_COLUMNS).where(files.c.id == file_id, visible(files, key), _not_expired())
    row = connection.execute(query).first()
    if row is None:
        raise ApiError(404, f"no such file: {file_id[:100]}", param="file_id", code="not_found")
    return File(*row)


def _number(connection: Connection, file_id: str, key: str) -> int:
    """Return the number of a file of that key, which may have expired; raises ApiError 400."""
    query = select(files.c.number).where(files.c.id == file_id, visible(files, key))
    number: int | None = connection.execute(query).scalar()
    if number is None:
        raise invalid(f"no such file: {file_id[:100]}", param="after")
    return number


def _stored(connection: Connection, key: str | None) -> Stored:
    blocks = func.coalesce(func.sum(files.c.bytes // BLOCK + 1), 0)
    everything = connection.execute(select(blocks)).scalar_one()
    of_key = connection.execute(select(blocks).where(files.c.key_hash == key)).scalar_one()
    return Stored(everything * BLOCK, of_key * BLOCK)


def _not_expired() -> Any:
    return or_(files.c.expires_at.is_(None), files.c.expires_at > int(time.time()))
