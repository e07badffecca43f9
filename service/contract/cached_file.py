"""A small file that is read often and replaced rarely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["CachedFile"]

T = TypeVar("T")


@dataclass
class CachedFile(Generic[T]):
    """Parses `path` again only when it was replaced; one stat per call otherwise.

    A file that is absent, unreadable or refused by `parse` (ValueError) counts as None. `on_error` is called once for
    each such file.
    """

    path: Path
    parse: Callable[[bytes], T]
    on_error: Callable[[Exception], None] = lambda _: None
    _seen: tuple[int, int, int] | None = field(default=None, init=False)
    _value: T | None = field(default=None, init=False)

    def read(self) -> T | None:
        """Return what the file holds now."""
        try:
            status = self.path.stat()
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
