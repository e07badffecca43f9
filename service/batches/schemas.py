"""The responses of /v1/files and /v1/batches in OpenAI's format. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

__all__ = ["Batch", "BatchPage", "Bytes", "Deleted", "File", "FilePage", "Form"]

Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled", "expired"]


class File(TypedDict):
    """A file; `status` and `status_details` are fields for old clients."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class FilePage(TypedDict):
    """One page of the list of files."""

    object: Literal["list"]
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(TypedDict):
    """The deletion of a file."""

    id: str
    object: Literal["file"]
    deleted: bool


class LineError(TypedDict):
    """An error in an input file, and its line, from 1."""

    code: str
    line: int | None
    message: str
    param: str | None


class Errors(TypedDict):
    """The errors of a failed batch, at most a hundred."""

    object: Literal["list"]
    data: list[LineError]


class Counts(TypedDict):
    """The requests of a batch; the others are pending, or were not executed."""

    total: int
    completed: int
    failed: int


class Batch(TypedDict):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: Errors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    metadata: dict[str, str] | None


class BatchPage(TypedDict):
    """One page of the list of batches."""

    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


Bytes = {"type": "string", "contentMediaType": "application/octet-stream"}
"""The content of a file, as JSON schema."""

Form = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": Bytes,
        "purpose": {"const": "batch"},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 30 * 24 * 3600},
    },
}
"""The form of an upload, as JSON schema."""
