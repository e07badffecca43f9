"""SHA-256 digests of files, several files at a time: a digest is sequential, and hashlib frees the interpreter lock."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from deploy.errors import GlmError
from deploy.releases.release import File, Release, damaged

__all__ = ["Advance", "Stopped", "compare", "copy", "require_sizes"]

Advance = Callable[[int], None]
"""Called with the number of bytes processed since the last call; not by two threads at a time."""

_CHUNK = 8 << 20
_THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


class Stopped(Exception):
    """The work was stopped from outside."""


def copy(files: Sequence[tuple[Path, str]], target: Path, advance: Advance) -> list[File]:
    """Copy files to their names below `target`, read once, and return their entries; each is on disk then.

    Raises GlmError.
    """
    for _, name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)

    def copy_one(file: tuple[Path, str], progress: Advance) -> File:
        source, name = file
        digest, size = hashlib.sha256(), 0
        try:
            with source.open("rb") as reader, (target / name).open("xb") as writer:
                while chunk := reader.read(_CHUNK):
                    digest.update(chunk)
                    writer.write(chunk)
                    size += len(chunk)
                    progress(len(chunk))
                writer.flush()
                os.fsync(writer.fileno())
        except OSError as error:
            raise GlmError(f"cannot copy {source}: {error.strerror}", hint="nothing was published") from error
        return File(path=name, size=size, sha256=digest.hexdigest())

    return _in_parallel(copy_one, files, advance, threading.Event())


def compare(
    release: Release, advance: Advance, *, files: Sequence[File] | None = None, stop: threading.Event | None = None
) -> None:
    """Compare `files` of a release, or all of them, with their digests; raises Refused with one that differs.

    Raises Stopped soon after `stop` is set.
    """
    require_sizes(release)

    def compare_one(file: File, progress: Advance) -> None:
        digest = hashlib.sha256()
        try:
            with (release.path / file.path).open("rb") as reader:
                while chunk := reader.read(_CHUNK):
                    digest.update(chunk)
                    progress(len(chunk))
        except OSError as error:
            raise damaged(release.version, file.path, f"it cannot be read: {error.strerror}") from error
        if digest.hexdigest() != file.sha256:
            raise damaged(release.version, file.path, "its contents changed")

    largest_first = sorted(release.manifest.files if files is None else files, key=lambda file: -file.size)
    _in_parallel(compare_one, largest_first, advance, stop or threading.Event())


def require_sizes(release: Release) -> None:
    """Raise Refused if a file of the release is missing or has another size."""
    for file in release.manifest.files:
        try:
            size = (release.path / file.path).stat().st_size
        except OSError as error:
            raise damaged(release.version, file.path, "it is missing") from error
        if size != file.size:
            raise damaged(release.version, file.path, f"its size in bytes is {size} instead of {file.size}")


def _in_parallel(
    work: Callable[[T, Advance], R], items: Sequence[T], advance: Advance, stop: threading.Event
) -> list[R]:
    """Return the results in the order of the items. The first failure stops the others, and is raised."""
    lock = threading.Lock()

    def progress(count: int) -> None:
        if stop.is_set():
            raise Stopped
        with lock:
            advance(count)

    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "digest")
    try:
        futures: list[Future[R]] = [pool.submit(work, item, progress) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failures = [error for error in (future.exception() for future in done) if error is not None]
        if failures:
            raise next((error for error in failures if not isinstance(error, Stopped)), failures[0])
        return [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
