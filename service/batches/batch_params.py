"""The parameters of a new batch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BatchParams"]


@dataclass(frozen=True)
class BatchParams:
    """The parameters of a new batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_seconds: int | None = None
    """Seconds until output and error file expire; None: never."""
