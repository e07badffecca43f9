"""The SQLite database of files and batches: location, connections, transactions and errors."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.schema import CreateColumn

from service.batches.database_file import DatabaseFile
from service.batches.room import Reserve, free
from service.batches.tables import SCHEMA, tables
from service.chat.errors import ApiError

__all__ = ["Database", "Unavailable", "storage_errors"]

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4
BUSY_TIMEOUT = 5.0  # seconds that a transaction waits for a lock; transactions here take milliseconds
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Unavailable(ApiError):
    """The state directory is unusable: 507 if its file system is full, else 503. Nothing was changed."""


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Convert errors of the disk and the database to Unavailable."""
    try:
        yield
    except OSError as error:
        raise _unavailable(directory, error.strerror or str(error), full=error.errno in _FULL) from error
    except DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if not isinstance(error.orig, sqlite3.OperationalError | sqlite3.DatabaseError) or code == sqlite3.SQLITE_ERROR:
            raise  # an invalid statement
        raise _unavailable(directory, str(error.orig), full=code == sqlite3.SQLITE_FULL) from error
    except NoConnection as error:
        raise _unavailable(directory, "too many requests at once", full=False) from error


def _unavailable(directory: Path, reason: str, *, full: bool) -> Unavailable:
    message = f"files and batches are unavailable: {directory}: {reason}; chat completions are not affected"
    if full:
        return Unavailable(507, message, code="storage_full")
    return Unavailable(503, message, code="storage_unavailable", headers={"Retry-After": "5"})


class Database:
    """`batches.db` in the state directory, shared by the workers of both slots and of every generation.

    It is opened on first use, and again when the file was replaced. `reading` and `writing` block, and raise
    Unavailable if it cannot be used. A committed transaction is durable: write-ahead log, synchronous=FULL.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = DatabaseFile(directory)
        self.path = self.file.path
        self._engine: Engine | None = None
        self._inode: tuple[int, int] | None = None
        self._lock = threading.Lock()  # of engine and inode
        self._threads = ThreadPoolExecutor(THREADS, "batches")
        self._reserve = Reserve(directory)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function of the runner in a thread, so that a slow disk blocks nothing else.

        The requests of clients have a pool of their own; see TimedPool.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *args, **kwargs))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read transaction: one consistent view."""
        with storage_errors(self.directory), self._open().connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a write transaction, exclusive from its first statement; commits on success."""
        with storage_errors(self.directory), self._open().execution_options(immediate=True).begin() as connection:
            yield connection

    def freeing(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function that frees room; on a full disk a second time, with the room of the reserve."""
        try:
            return function(*args, **kwargs)
        except Unavailable:
            if not self._reserve.release():
                raise
        try:
            return function(*args, **kwargs)
        finally:
            self._empty_log()
            self._reserve.keep()

    def _empty_log(self) -> None:
        """Move the log into the database, which has the pages already, so that its room is free again."""
        with (
            suppress(Unavailable),
            storage_errors(self.directory),
            closing(self._open().raw_connection()) as connection,
        ):
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def require_room(self, least: int) -> None:
        """Raise Unavailable (507) if less than `least` bytes are free in the file system; it blocks."""
        with storage_errors(self.directory):
            found = free(self.directory)
        if found < least:
            raise _unavailable(self.directory, f"{found} bytes are free, and {least} are kept back", full=True)

    def close(self) -> None:
        """Close all connections and the threads."""
        with self._lock:
            self._dispose()
        self._threads.shutdown(wait=False)

    def _open(self) -> Engine:
        with self._lock:
            if self._engine is not None and self._inode == _inode(self.path):
                return self._engine
            self._dispose()
            self.directory.stat()  # its error is clearer than SQLite's
            engine = create_engine(
                f"sqlite:///{self.path}",
                connect_args={"timeout": BUSY_TIMEOUT},
                pool_size=2 * THREADS,  # as many threads work for clients
                pool_timeout=BUSY_TIMEOUT,
            )
            event.listen(engine, "connect", _configure)
            event.listen(engine, "begin", _begin_transaction)
            try:
                with engine.execution_options(immediate=True).begin() as connection:
                    _migrate(connection)
            except BaseException:
                engine.dispose()
                raise
            self._engine, self._inode = engine, _inode(self.path)
            self._reserve.keep()
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


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # _begin_transaction begins transactions, not the driver
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            break
        except sqlite3.OperationalError as error:  # the busy timeout does not apply to this pragma
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "journal_size_limit=16777216"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_transaction(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _migrate(connection: Connection) -> None:
    """Create missing tables, columns and indexes. A newer schema is used unchanged: later versions only add to it."""
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version >= SCHEMA:
        return
    tables.create_all(connection)
    for table in tables.sorted_tables:
        existing = {column["name"] for column in inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in existing:
                definition = CreateColumn(column).compile(connection)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")
        for index in table.indexes:
            index.create(connection, checkfirst=True)
    connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA}")
