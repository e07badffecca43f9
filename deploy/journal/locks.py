"""Locks between processes, on files: one that holds a lock excludes the others, and one that only looks takes none.

They are open file description locks (fcntl(2)), which the kernel frees when the file is closed or its holder dies, like
those of flock(2). Those can only be tested by taking them, and a rollout that begins at that moment would be refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check", "held", "is_held"]

_FLOCK = struct.Struct("@hhqqi")  # struct flock: l_type, l_whence, l_start, l_len, l_pid
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock on the file `path`, which is created.

    Without `wait`, raises BlockingIOError if another process holds it. Raises OSError if the file cannot be opened.
    """
    with os.fdopen(_open(path, os.O_WRONLY | os.O_CREAT), "a") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, _WHOLE_FILE)
        yield


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock on the file `path`; True also if this user may not read the file."""
    try:
        with os.fdopen(_open(path, os.O_RDONLY), "rb") as file:
            found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return bool(_FLOCK.unpack_from(found)[0] != fcntl.F_UNLCK)


def check(path: Path) -> None:
    """Raise OSError if there is something at `path` that cannot hold a lock."""
    if os.path.lexists(path):
        os.close(_open(path, os.O_RDONLY))


def _open(path: Path, flags: int) -> int:
    """Open a lock file; a FIFO is refused, and does not block."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))
