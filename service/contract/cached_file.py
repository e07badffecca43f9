"""A cache for a small file that is read often and replaced rarely."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from service.contract import regular_file

__all__ = ["CachedFile"]

T = TypeVar("T")


@dataclass
class CachedFile(Generic[T]):
    """Parses `path` only when the file was replaced; otherwise a read costs one stat.

    The value is None while the file is absent, cannot be read, or is refused by `parse` (ValueError). `on_error` is
    called once for each file that cannot be read or parsed. One that cannot be read is tried again at each read: the
    reason may be a lack of descriptors. `follow`: as for `regular_file.read`.
    """

    path: Path
    parse: Callable[[bytes], T]
    on_error: Callable[[Exception], None] = lambda _: None
    follow: bool = False
    _seen: tuple[int, int, int] | None = field(default=None, init=False)
    _reported: tuple[int, int, int] | None = field(default=None, init=False)
    _value: T | None = field(default=None, init=False)

    def read(self) -> T | None:
        """Return the parsed content of the file as it is now, or None."""
        try:
            status = os.stat(self.path, follow_symlinks=self.follow)  # noqa: PTH116  (half the time of Path.stat)
        except OSError:
            self._seen = self._value = None
            return None
        seen = (status.st_ino, status.st_ctime_ns, status.st_size)  # ctime: also a change of the permissions
        if seen != self._seen:
            self._value = None
            try:
                self._value = self.parse(regular_file.read(self.path, follow=self.follow))
            except FileNotFoundError:  # removed since
                return None
            except OSError as error:
                self._report(seen, error)
                return None
            except ValueError as error:
                self._report(seen, error)
            self._seen = seen
        return self._value

    def _report(self, seen: tuple[int, int, int], error: Exception) -> None:
        if seen != self._reported:
            self._reported = seen
            self.on_error(error)
