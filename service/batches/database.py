"""The database of files and batches: where it is, how it is opened, what it says when it cannot be used."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection

from service.batches.tables import SCHEMA, tables
from service.chat.errors import ApiError

__all__ = ["Database", "Unavailable", "usable"]

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4
BUSY = 5.0  # seconds a transaction waits for another's; ours take milliseconds
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Unavailable(ApiError):
    """The state directory cannot be used now: 507 when it is full, else 503. Whatever was begun has not happened."""


@contextmanager
def usable(directory: Path) -> Iterator[None]:
    """Turn what the disk and the database complain of into Unavailable."""
    try:
        yield
    except OSError as error:
        raise _unavailable(directory, error.strerror or str(error), full=error.errno in _FULL) from error
    except DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if not isinstance(error.orig, sqlite3.OperationalError | sqlite3.DatabaseError) or code == sqlite3.SQLITE_ERROR:
            raise  # our own mistake
        raise _unavailable(directory, str(error.orig), full=code == sqlite3.SQLITE_FULL) from error
    except NoConnection as error:
        raise _unavailable(directory, "too many requests at once", full=False) from error


def _unavailable(directory: Path, reason: str, *, full: bool) -> Unavailable:
    message = f"files and batches are out of service: {directory}: {reason}; chat is not concerned"
    if full:
        return Unavailable(507, message, code="storage_full")
    return Unavailable(503, message, code="storage_unavailable", headers={"Retry-After": "5"})


class Database:
    """`batches.db` in the state directory, shared by the workers of both slots and of every generation.

    It is opened at its first use, and again when another file has taken its place; what is asked of it raises
    Unavailable when it cannot be had. All calls block. Transactions are durable when they end: write-ahead log,
    synchronous=FULL.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "batches.db"
        self._engine: Engine | None = None
        self._inode: tuple[int, int] | None = None
        self._opening = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "batches")

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what blocks in a thread; in one of ours, so that a slow disk holds up nobody else's."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(work, *args, **kwargs))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view."""
        with usable(self.directory), self._open().connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction; it is the only one that writes from its first statement on."""
        with usable(self.directory), self._open().execution_options(immediate=True).begin() as connection:
            yield connection

    def stamp(self) -> tuple[int, ...]:
        """Something that differs after every change by anyone; without a database it is empty.

        The write-ahead log's stamp and size do: two system calls and no lock, where `PRAGMA data_version` would need a
        connection of its own in a thread of its own.
        """
        found: tuple[int, ...] = ()
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            with suppress(OSError):
                status = path.stat()
                found += (status.st_ino, status.st_mtime_ns, status.st_size)
        return found

    def close(self) -> None:
        """Let go of it."""
        with self._opening:
            self._dispose()
        self._threads.shutdown(wait=False)

    def _open(self) -> Engine:
        with self._opening:
            if self._engine is not None and self._inode == _inode(self.path):
                return self._engine
            self._dispose()
            self.directory.stat()  # says what is wrong more plainly than SQLite does
            engine = create_engine(
                f"sqlite:///{self.path}", connect_args={"timeout": BUSY}, pool_size=THREADS, pool_timeout=BUSY
            )
            event.listen(engine, "connect", _prepare)
            event.listen(engine, "begin", _begin)
            try:
                with engine.execution_options(immediate=True).begin() as connection:
                    _migrate(connection)
            except BaseException:
                engine.dispose()
                raise
            self._engine, self._inode = engine, _inode(self.path)
            return engine

    def _dispose(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
        self._engine = None


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions at moments of its own choice
    deadline = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            break
        except sqlite3.OperationalError as error:  # SQLite does not wait here for another that does the same
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "journal_size_limit=16777216"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _migrate(connection: Connection) -> None:
    """Make what is missing. A newer schema is used as it is: later versions only ever add to it."""
    found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if found < SCHEMA:
        tables.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA}")
