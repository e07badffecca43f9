"""The files of this process, which are allocated before they are mapped.

prometheus_client maps sparse files: writing a page for which the file system has no room raises SIGBUS.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

from prometheus_client import mmap_dict, values

from service.metric_files.directory import DAMAGED, locked, own_name

__all__ = ["install"]

logger = logging.getLogger("gunicorn.error")

_Dict: Any = mmap_dict.MmapedDict  # the library has no types
_values: Any = values

_MAX_SIZE = 1 << 26  # bytes; those of a worker have some ten kilobytes
_ENTRY = 64  # bytes of an entry beside its key, at most


class _AllocatedDict(_Dict):  # type: ignore[misc]
    """The values of one process, in a file of which every byte is allocated.

    Without room for the file, or if it is damaged, they are kept in the memory of the process, where no scrape finds
    them; that is logged once.
    """

    _f: Any
    _m: Any
    _is_private = False

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if read_mode:
            super().__init__(filename, read_mode)
            return
        try:
            with locked(Path(filename).parent):  # so that no merge takes them for those of a process of the same pid
                _create(filename)
                super().__init__(filename)
        except DAMAGED as error:
            self._keep_private(filename, error, b"")

    def _init_value(self, key: str) -> None:
        capacity = self._capacity
        while self._used + len(key.encode()) + _ENTRY > capacity:
            capacity *= 2
        if capacity > self._capacity:
            try:
                os.posix_fallocate(self._f.fileno(), 0, capacity)
            except OSError as error:
                self._keep_private(self._fname, error, bytes(self._m))
        super()._init_value(key)

    def _keep_private(self, filename: str, error: Exception, content: bytes) -> None:
        if not _AllocatedDict._is_private:
            logger.error("cannot write %s, this process is not measured: %s", filename, error)
        _AllocatedDict._is_private = True
        memory = os.memfd_create("metrics")
        try:
            os.write(memory, content)
            super().__init__(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)


def _create(filename: str) -> None:
    """Allocate the file; one that cannot be is removed, because an empty one could not be read."""
    path = Path(filename)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size > _MAX_SIZE:
            raise OSError(errno.EFBIG, f"it is larger than {_MAX_SIZE} bytes", filename)  # noqa: TRY301
        os.posix_fallocate(descriptor, 0, max(size, mmap_dict._INITIAL_MMAP_SIZE))  # noqa: SLF001
    except OSError:
        if size == 0:
            path.unlink()
        raise
    finally:
        os.close(descriptor)


def install() -> None:
    """Make prometheus_client allocate its files, and name them after the process; call it before the first metric."""
    _values.MmapedDict = _AllocatedDict
    if _values.ValueClass._multiprocess:  # noqa: SLF001
        _values.ValueClass = _values.MultiProcessValue(own_name)
