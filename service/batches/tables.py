"""The tables of the database."""

from __future__ import annotations

from sqlalchemy import JSON, Column, ColumnElement, ForeignKey, Index, Integer, MetaData, String, Table, or_

__all__ = ["ENDED", "SCHEMA", "batches", "files", "items", "tables", "visible"]

SCHEMA = 2
"""`PRAGMA user_version`. Two versions of the service share the database during a rollout and after a rollback, so a
later schema may only add tables, indexes and columns with a default."""

ENDED = ("completed", "failed", "cancelled", "expired")
"""The final statuses of a batch."""

tables = MetaData()

files = Table(
    "files",
    tables,
    Column("number", Integer, primary_key=True),  # the order of creation
    Column("id", String, nullable=False, unique=True),  # also the name of the content below files/
    Column("bytes", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("expires_at", Integer),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("key_hash", String),  # see below
    sqlite_autoincrement=True,
)

batches = Table(
    "batches",
    tables,
    Column("number", Integer, primary_key=True),  # the order of creation and of processing
    Column("id", String, nullable=False, unique=True),
    Column("status", String, nullable=False, index=True),
    Column("owner", String),  # the process that validates or finalises it
    Column("endpoint", String, nullable=False),
    Column("completion_window", String, nullable=False),
    Column("input_file_id", String, nullable=False),
    Column("output_file_id", String),
    Column("error_file_id", String),
    Column("output_seconds", Integer),  # until output and error file expire; null: never
    Column("metadata", JSON(none_as_null=True)),
    Column("errors", JSON(none_as_null=True)),  # of a failed batch: a list of code, line, message, param
    Column("total", Integer, nullable=False, default=0),
    Column("completed", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    Column("created_at", Integer, nullable=False),
    Column("in_progress_at", Integer),
    Column("expires_at", Integer, nullable=False),
    Column("finalizing_at", Integer),
    Column("completed_at", Integer),
    Column("failed_at", Integer),
    Column("expired_at", Integer),
    Column("cancelling_at", Integer),
    Column("cancelled_at", Integer),
    Column("key_hash", String),  # see below
    sqlite_autoincrement=True,
)

# key_hash: the Client.key of the request that made the file or batch. Null: made by a version that did not record it,
# which may still run beside this one during a rollout.
Index("files_key_hash", files.c.key_hash, files.c.number)
Index("batches_key_hash", batches.c.key_hash, batches.c.number)


def visible(table: Table, key: str) -> ColumnElement[bool]:
    """Whether a client with that key hash may use the row, if it knows its id; one without a hash is in no list."""
    return or_(table.c.key_hash == key, table.c.key_hash.is_(None))


items = Table(
    "items",  # the requests of a batch, from its validation until its output file is written
    tables,
    Column("batch", Integer, ForeignKey("batches.number"), primary_key=True),
    Column("line", Integer, primary_key=True),  # in the input file, from 1
    Column("custom_id", String, nullable=False),
    Column("offset", Integer, nullable=False),  # of the line in the input file, and its length, in bytes
    Column("length", Integer, nullable=False),
    Column("state", String, nullable=False, default="pending"),  # pending, claimed, completed, failed
    Column("owner", String),  # the process that claimed it
    Column("tries", Integer, nullable=False, default=0),  # that ended with a server error
    Column("deaths", Integer, nullable=False, default=0, server_default="0"),  # of owners that were processing it
    Column("result", String),  # its line in the output or error file
    sqlite_with_rowid=False,
)
Index("items_next", items.c.batch, items.c.deaths, items.c.tries, items.c.line, sqlite_where=items.c.state == "pending")
Index("items_claimed", items.c.owner, items.c.batch, sqlite_where=items.c.state == "claimed")
