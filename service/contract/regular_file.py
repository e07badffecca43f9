"""Reading files that another program, or another user, may have replaced by anything."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from service.contract import directories

__all__ = ["LIMIT", "open_for_reading", "read"]

LIMIT = 1 << 24
"""Bytes; the files of the contract are of some kilobytes."""

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # O_NONBLOCK: a FIFO without a writer would block


def read(path: Path, *, limit: int = LIMIT, follow: bool = False) -> bytes:
    """Return the content of a regular file; never blocks, and reads no more than `limit` bytes.

    `follow`: for a file of the operator, which may be a symlink; otherwise symlinks are refused as by
    `directories.opened`, and `path` itself is none. Raises OSError, also if it is not a regular file or is larger.
    """
    descriptor = open_for_reading(path, follow=follow)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        content = b"" if size > limit else file.read(limit + 1)
        while content and len(content) <= limit and (more := file.read(limit + 1 - len(content))):
            content += more
    if size > limit or len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(path))
    return content


def open_for_reading(path: Path, *, follow: bool = False) -> int:
    """Return a descriptor of a regular file; raises OSError as `read` does."""
    if follow:
        descriptor = os.open(path, _FLAGS)
    else:
        with directories.opened(path.parent) as directory:
            descriptor = os.open(path.name, _FLAGS | os.O_NOFOLLOW, dir_fd=directory)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))
