"""The stored batches: creation, queries, cancellation, and the transitions between statuses."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from sqlalchemy import Connection, delete, select, update

from service.batches import lines
from service.batches.batch_params import BatchParams
from service.batches.database import Database, Unavailable
from service.batches.files import Draft, File, Files, find
from service.batches.pages import Page
from service.batches.tables import ENDED, batches, items, visible
from service.chat.errors import ApiError, invalid
from service.fairness.client import NOBODY
from service.settings import Settings

__all__ = ["Batches"]

COMPLETION_WINDOW = 24 * 3600  # seconds; the only window that is accepted
_ROWS = 500  # results read at a time: all results of a batch may exceed memory
_TIMES = ("in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
          "cancelled_at")  # fmt: skip


class Batches:
    """The stored batches. Every method blocks and raises Unavailable; unknown ids raise ApiError 404.

    `key` is `Client.key` of the request's client; a batch or file of another key is unknown to it.
    """

    def __init__(self, database: Database, files: Files, settings: Settings) -> None:
        self.database = database
        self.files = files
        self.settings = settings

    def create(self, params: BatchParams, *, key: str = NOBODY.key) -> dict[str, Any]:
        """Create a batch, which is validated and processed later; raises ApiError 400."""
        now = int(time.time())
        self.require_room()
        with self.database.writing() as connection:
            if find(connection, params.input_file_id, key).purpose != "batch":
                raise invalid("the file's purpose is not batch", param="input_file_id")
            self.files.require_quota(connection, key)
            batch_id = f"batch_{uuid.uuid4().hex}"
            row = params.__dict__ | {"id": batch_id, "status": "validating", "created_at": now, "key_hash": key}
            connection.execute(batches.insert().values(row | {"expires_at": now + COMPLETION_WINDOW}))
            return _document(_find(connection, batch_id))

    def has_room(self) -> bool:
        """Return whether `require_room` raises nothing."""
        try:
            self.require_room()
        except Unavailable:
            return False
        return True

    def require_room(self) -> None:
        """Raise Unavailable (507) if the file system has less room than is kept back."""
        self.database.require_room(self.settings.state_reserve)

    def get(self, batch_id: str, *, key: str = NOBODY.key) -> dict[str, Any]:
        """Return a batch as OpenAI's JSON object."""
        with self.database.reading() as connection:
            return _document(_find(connection, batch_id, key))

    def list(self, *, after: str | int | None, limit: int, key: str = NOBODY.key) -> Page:
        """List batches, newest first; `after` is the id of the last batch before them, or the number of its row."""
        with self.database.reading() as connection:
            query = select(batches).where(batches.c.key_hash == key).order_by(batches.c.number.desc())
            if after is not None:
                last = after if isinstance(after, int) else _number(connection, after, key)
                query = query.where(batches.c.number < last)
            rows = connection.execute(query.limit(limit + 1)).all()
        found = rows[:limit]
        return Page([_document(row) for row in found], found[-1].number if found else None, len(rows) > limit)

    def cancel(self, batch_id: str, *, key: str = NOBODY.key) -> dict[str, Any]:
        """Cancel a batch; results so far are kept. Raises ApiError 400 if the batch is finalizing or has ended."""
        return self.database.freeing(self._cancel, batch_id, key)

    def _cancel(self, batch_id: str, key: str) -> dict[str, Any]:
        with self.database.writing() as connection:
            status = _find(connection, batch_id, key).status
            if status in ("finalizing", *ENDED):
                raise invalid(f"a batch that is {status} cannot be cancelled", code="not_cancellable")
            if status != "cancelling":
                _set(connection, batch_id, status="cancelling", cancelling_at=int(time.time()))
            return _document(_find(connection, batch_id))

    def validate(self, batch_id: str, owner: str, cancelled: Callable[[], bool]) -> None:
        """Parse the input file, and start or fail the batch. Has no effect if `owner` no longer holds the batch.

        Returns early if `cancelled` returns true.
        """
        self.require_room()
        with self.database.reading() as connection:
            batch = _find(connection, batch_id)
        try:
            with self.files.read(batch.input_file_id) as file:
                parsed = lines.parse_input(
                    file,
                    max_lines=self.settings.max_batch_lines,
                    max_length=self.settings.max_body,
                    max_structure=self.settings.max_structure,
                    cancelled=cancelled,
                )
        except ApiError as error:
            if error.status != 404:
                raise
            parsed = lines.InputFile()
            parsed.add_error("invalid_file", "the input file no longer exists", param="input_file_id")
        if parsed is None:
            return
        now = int(time.time())
        with self.database.writing() as connection:
            if not _holds(connection, batch_id, owner, "validating"):
                return
            if parsed.errors:
                _set(connection, batch_id, status="failed", failed_at=now, errors=parsed.errors, owner=None)
                return
            connection.execute(items.insert(), [task.__dict__ | {"batch": batch.number} for task in parsed.tasks])
            _set(connection, batch_id, status="in_progress", in_progress_at=now, total=len(parsed.tasks), owner=None)

    def finalise(self, batch_id: str, owner: str) -> None:
        """Write output and error file and end the batch, in one transaction.

        Has no effect if `owner` no longer holds the batch.
        """
        with self.database.reading() as connection:
            batch = _find(connection, batch_id)
        final_status = "completed"
        if batch.completed + batch.failed < batch.total or batch.status == "cancelling":
            final_status = "expired" if batch.status == "finalizing" else "cancelled"
        with ExitStack() as drafts:
            output, errors = (drafts.enter_context(self.files.output(batch.key_hash)) for _ in range(2))
            for state, line in self._results(batch.number, final_status):
                (output if state == "completed" else errors).write(line.encode() + b"\n")
            now = int(time.time())
            with self.database.writing() as connection:
                if not _holds(connection, batch_id, owner, batch.status):
                    return
                kept: dict[str, tuple[Draft, File]] = {}
                for kind, draft in (("output", output), ("error", errors)):
                    if draft.size:
                        name = f"{batch_id}_{kind}.jsonl"
                        file = draft.publish(connection, name, "batch_output", batch.output_seconds)
                        kept[f"{kind}_file_id"] = (draft, file)
                changes = {column: file.id for column, (_, file) in kept.items()} | {f"{final_status}_at": now}
                _set(connection, batch_id, status=final_status, owner=None, **changes)
                connection.execute(delete(items).where(items.c.batch == batch.number))
            for draft, _ in kept.values():
                draft.keep()

    def _results(self, number: int, final_status: str) -> Iterator[tuple[str, str]]:
        """Yield state and output line of each request, in the order of the input file."""
        last = 0
        while True:
            with self.database.reading() as connection:
                rows = connection.execute(
                    select(items.c.line, items.c.custom_id, items.c.state, items.c.result)
                    .where(items.c.batch == number, items.c.line > last)
                    .order_by(items.c.line)
                    .limit(_ROWS)
                ).all()
            if not rows:
                return
            for row in rows:
                yield row.state, row.result or lines.unexecuted_line(row.custom_id, final_status)
            last = rows[-1].line


def _find(connection: Connection, batch_id: str, key: str | None = None) -> Any:
    """Return a batch's row, with `key` only if it is visible to that; raises ApiError 404."""
    query = select(batches).where(batches.c.id == batch_id)
    row = connection.execute(query if key is None else query.where(visible(batches, key))).first()
    if row is None:
        raise ApiError(404, f"no such batch: {batch_id[:100]}", param="batch_id", code="not_found")
    return row


def _number(connection: Connection, batch_id: str, key: str) -> int:
    """Return the number of a batch of that key; raises ApiError 400."""
    query = select(batches.c.number).where(batches.c.id == batch_id, visible(batches, key))
    number: int | None = connection.execute(query).scalar()
    if number is None:
        raise invalid(f"no such batch: {batch_id[:100]}", param="after")
    return number


def _set(connection: Connection, batch_id: str, **values: Any) -> None:
    connection.execute(update(batches).where(batches.c.id == batch_id).values(values))


def _holds(connection: Connection, batch_id: str, owner: str, status: str) -> bool:
    """Whether the owner holds the batch, in that status."""
    held = batches.c.id == batch_id, batches.c.owner == owner, batches.c.status == status
    return connection.execute(select(batches.c.number).where(*held)).first() is not None


def _document(row: Any) -> dict[str, Any]:
    """Return OpenAI's JSON object."""
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "errors": {"object": "list", "data": row.errors} if row.errors else None,
        "input_file_id": row.input_file_id,
        "completion_window": row.completion_window,
        "status": row.status,
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        "created_at": row.created_at,
        **{name: getattr(row, name) for name in _TIMES},
        "request_counts": {"total": row.total, "completed": row.completed, "failed": row.failed},
        "metadata": row.metadata,
    }
