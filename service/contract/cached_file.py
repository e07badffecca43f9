"""A cache for a small file that is read often and replaced rarely."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["CachedFile"]

T = TypeVar("T")


@dataclass
class CachedFile(Generic[T]):
    """Parses `path` only when the file was replaced; otherwise a read costs one stat.

    The value is None while the file is absent, cannot be read, or is refused by `parse` (ValueError). `on_error` is
    called once for each file that cannot be read or parsed.
    """

    path: Path
    parse: Callable[[bytes], T]
    on_error: Callable[[Exception], None] = lambda _: None
    _seen: tuple[int, int, int] | None = field(default=None, init=False)
    _value: T | None = field(default=None, init=False)

    def read(self) -> T | None:
        """Return the parsed content of the file as it is now, or None."""
        try:
            status = os.stat(self.path)  # noqa: PTH116  (half the time of Path.stat)
        except OSError:
            self._seen = self._value = None
            return None
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._seen = seen
            try:
                self._value = self.parse(self.path.read_bytes())
            except (OSError, ValueError, RecursionError) as error:
                self._value = None
                self.on_error(error)
        return self._value
