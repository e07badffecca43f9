"""Directories that are opened without following a symlink of another user.

root reads and writes files below directories in which the service's user can create symlinks. Opening such a directory
once, and using names relative to its descriptor from then on, leaves nothing to exchange in between.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["opened"]

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40  # as in the kernel


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a directory, and close it at the end of the block; the descriptor may be used as `dir_fd`, and for fsync.

    A symlink anywhere in the path is followed if it belongs to root or to the calling user. Raises OSError, for a
    symlink of another user with ELOOP.
    """
    descriptor = _walk(path.absolute())
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _walk(path: Path) -> int:
    steps, links = list(path.parts[1:]), 0
    here = os.open("/", _STEP)
    try:
        while steps:
            step = steps.pop(0)
            try:
                there = os.open(step, _STEP, dir_fd=here)
            except OSError as error:
                error.filename = str(path)
                links += 1
                target = _link_target(step, here) if error.errno in {errno.ENOTDIR, errno.ELOOP} else None
                if target is None or links > _MAX_LINKS:
                    raise
                steps[:0] = [part for part in target.split("/") if part]
                there = os.open("/" if target.startswith("/") else ".", _STEP, dir_fd=here)
            os.close(here)
            here = there
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


def _link_target(name: str, directory: int) -> str | None:
    """Return the target of a symlink that may be followed; None if it is no symlink. Raises OSError for another one."""
    link = os.open(name, _LINK, dir_fd=directory)
    try:
        status = os.fstat(link)
        if not stat.S_ISLNK(status.st_mode):
            return None
        # in a user namespace the owner of / is not 0
        if status.st_uid not in {0, os.geteuid(), os.stat("/").st_uid}:  # noqa: PTH116
            raise OSError(errno.ELOOP, f"a symlink of another user (uid {status.st_uid}) is not followed", name)
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)
