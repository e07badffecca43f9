"""What is kept of files and batches."""

from __future__ import annotations

from sqlalchemy import JSON, Column, ForeignKey, Index, Integer, MetaData, String, Table

__all__ = ["ENDED", "SCHEMA", "batches", "files", "items", "tables"]

SCHEMA = 1
"""`PRAGMA user_version`. Two versions of us share the database during a rollout, and a rollback brings the older one
back to it: a later schema may add tables, indexes and columns with a default, and nothing else."""

ENDED = ("completed", "failed", "cancelled", "expired")
"""The statuses of a batch that nobody works on any more."""

tables = MetaData()

files = Table(
    "files",
    tables,
    Column("number", Integer, primary_key=True),  # the order of creation
    Column("id", String, nullable=False, unique=True),  # also the name of the file below files/
    Column("bytes", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("expires_at", Integer),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    sqlite_autoincrement=True,
)

batches = Table(
    "batches",
    tables,
    Column("number", Integer, primary_key=True),  # the order of creation, in which they are worked on
    Column("id", String, nullable=False, unique=True),
    Column("status", String, nullable=False, index=True),
    Column("owner", String),  # who validates or finalises it now
    Column("endpoint", String, nullable=False),
    Column("completion_window", String, nullable=False),
    Column("input_file_id", String, nullable=False),
    Column("output_file_id", String),
    Column("error_file_id", String),
    Column("output_seconds", Integer),  # how long output and error file are kept; null: until they are deleted
    Column("metadata", JSON(none_as_null=True)),
    Column("errors", JSON(none_as_null=True)),  # of a failed one: a list of code, line, message, param
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
    sqlite_autoincrement=True,
)

items = Table(
    "items",  # the requests of a batch, from its validation until its output file is written
    tables,
    Column("batch", Integer, ForeignKey("batches.number"), primary_key=True),
    Column("line", Integer, primary_key=True),  # in the input file, from 1
    Column("custom_id", String, nullable=False),
    Column("offset", Integer, nullable=False),  # of the line in the input file, and its length, in bytes
    Column("length", Integer, nullable=False),
    Column("state", String, nullable=False, default="pending"),  # pending, claimed, completed, failed
    Column("owner", String),  # whose claim it is
    Column("tries", Integer, nullable=False, default=0),  # that ended in our failure or with the owner's death
    Column("result", String),  # its line in the output or error file
    sqlite_with_rowid=False,
)
Index("items_pending", items.c.batch, items.c.tries, items.c.line, sqlite_where=items.c.state == "pending")
Index("items_claimed", items.c.owner, items.c.batch, sqlite_where=items.c.state == "claimed")
