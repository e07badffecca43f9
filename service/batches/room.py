"""The room for files: quotas of the clients, what of the file system stays free, and a reserve for deletions."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.chat.errors import ApiError
from service.settings import Settings

__all__ = ["BLOCK", "Reserve", "Stored", "charged", "free", "require_quota"]

BLOCK = 4096
"""Bytes; a file is charged for the blocks that it fills, and one more for its last one and its row."""

_RESERVE = 1 << 18  # bytes; a transaction that deletes writes some pages of 4 KiB, and a new shared index has 32 KiB


@dataclass(frozen=True)
class Stored:
    """What the stored files are charged for, in bytes: of all clients, and of one key."""

    all: int = 0
    of_key: int = 0


def require_quota(stored: Stored, more: int, settings: Settings) -> None:
    """Raise ApiError 413 if `more` bytes exceed a quota; the rest of the body is not read then."""
    for kind, used, limit in (
        ("all files together", stored.all, settings.max_stored),
        ("the files of one API key", stored.of_key, settings.max_stored_per_key),
    ):
        if used + more > limit:
            message = f"{kind} may have {limit} bytes, and have {used}; delete some"
            raise ApiError(413, message, code="quota_exceeded", headers={"Connection": "close"})


def charged(size: int) -> int:
    """Return what a file of `size` bytes is charged for, in bytes."""
    return (size // BLOCK + 1) * BLOCK


def free(directory: Path) -> int:
    """Return the bytes that are free for this user in the file system of a directory; raises OSError."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


class Reserve:
    """The file `reserve`: room that a deletion on a full disk can use, because the database needs some to delete."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "reserve"

    def keep(self) -> None:
        """Allocate the file, or as much of it as there is room for."""
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
            try:
                for size in (_RESERVE, _RESERVE // 2, _RESERVE // 4):
                    with suppress(OSError):
                        os.posix_fallocate(descriptor, 0, size)
                        break
            finally:
                os.close(descriptor)

    def release(self) -> bool:
        """Free the room, if there is less than that in the file system; return whether it was freed."""
        with suppress(OSError):
            if free(self._path.parent) < _RESERVE:
                self._path.unlink()
                return True
        return False
