"""The values of ended processes, merged into one file of each type. No value is lost or counted twice at any time.

A merge has five steps, under the directory's lock:

1. rename the files of ended processes, `TYPE_PID-TICKS.db`, to `TYPE_PID-TICKS.ended`
2. write the sums of these and of `TYPE_ended.db` to `TYPE_ended.new`, without those that have expired
3. rename it to `TYPE_ended.sum`, which counts from then on, and nothing that it contains
4. remove the files `TYPE_PID-TICKS.ended`
5. rename `TYPE_ended.sum` to `TYPE_ended.db`

If a process dies between two of them, `directory.counted` still finds each value once, and the next merge begins with
the steps that are left.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import mmap_dict
from prometheus_client.multiprocess import MultiProcessCollector

from service.metric_files import expiry
from service.metric_files.directory import DAMAGED, SUMMED, is_regular, locked, owner_of
from service.metric_files.expiry import Sum

__all__ = ["merge_ended", "remove_gauges"]

BATCH = 100
"""Files of a type that one call merges, for that a scrape does not wait long; later calls go on."""

_MESSAGES = 100  # that a process logs at most

_Dict: Any = mmap_dict.MmapedDict  # the library has no types
_Collector: Any = MultiProcessCollector

logger = logging.getLogger("gunicorn.error")
_logged: set[str] = set()


def merge_ended(directory: Path) -> None:
    """Merge the counters and histograms of processes that have ended, and remove their gauges and expired sums.

    Without room for the sums, or if another process holds the lock, nothing changes and a later call tries again.
    """
    with suppress(FileNotFoundError), locked(directory, exclusively=True) as is_held:
        if not is_held:
            return
        ended = _ended(directory)
        for path in ended["gauge"]:
            path.unlink(missing_ok=True)
        for kind in SUMMED:
            try:
                _complete(directory, kind)
                _merge(directory, kind, ended[kind])
            except OSError as error:
                _log_once(f"cannot merge the metrics of ended processes: {error}")


def remove_gauges(directory: Path, pid: int) -> None:
    """Remove the gauges of a process that has ended, or is about to."""
    for path in directory.glob("gauge_live*.db"):
        if (owner := owner_of(path)) and owner.pid == pid:
            path.unlink(missing_ok=True)


def _ended(directory: Path) -> dict[str, list[Path]]:
    """Return the files of processes that have ended, by type.

    A process that starts waits for the lock before it opens its files.
    """
    found: dict[str, list[Path]] = {"gauge": [], **{kind: [] for kind in SUMMED}}
    for path in sorted(directory.iterdir()):
        if (owner := owner_of(path)) and not owner.is_alive:
            found[owner.kind].append(path)
    return found


def _merge(directory: Path, kind: str, files: list[Path]) -> None:
    frozen = _frozen(directory, kind)
    for path in files[: BATCH - len(frozen)]:
        target = path.with_suffix(".ended")
        if target not in frozen:  # of a process that had the same pid, and for whose values there was no room yet
            path.rename(target)
    frozen, before = _frozen(directory, kind), directory / f"{kind}_ended.db"
    if not frozen and not expiry.is_due(before):
        return
    new = directory / f"{kind}_ended.new"
    _write(new, expiry.kept(_sums([before, *frozen]), directory))
    new.rename(directory / f"{kind}_ended.sum")
    _complete(directory, kind)


def _complete(directory: Path, kind: str) -> None:
    """Do the steps after the one that commits, if it was done."""
    committed = directory / f"{kind}_ended.sum"
    if is_regular(committed):
        for path in _frozen(directory, kind):
            path.unlink()
        committed.rename(directory / f"{kind}_ended.db")


def _frozen(directory: Path, kind: str) -> list[Path]:
    return [path for path in sorted(directory.glob(f"{kind}_*.ended")) if is_regular(path)]


def _sums(files: list[Path]) -> dict[str, Sum]:
    """Return the sum of each value, by key. A bucket in a file does not include those below it."""
    sums: dict[str, Sum] = {}
    now = time.time()
    for path in files:
        if not is_regular(path):
            continue
        try:
            _Collector.merge([str(path)], accumulate=False)  # what a scrape cannot read must not get into the sums
            values = list(_Dict.read_all_values_from_file(str(path)))
        except DAMAGED as error:
            _log_once(f"the values of {path.name} are lost, it is damaged: {error}")
            continue
        for key, value, changed, _ in values:
            before = sums.get(key, Sum(0.0, 0.0))
            sums[key] = Sum(before.value + value, max(before.changed, changed or now))  # processes write no time
    return sums


def _write(path: Path, values: dict[str, Sum]) -> None:
    """Write a file of values as prometheus_client does; raises OSError, and leaves none then."""
    path.unlink(missing_ok=True)
    memory = os.memfd_create("metrics")
    try:
        content = _Dict(f"/proc/self/fd/{memory}")
        for key, (value, changed) in values.items():
            content.write_value(key, value, changed)
        used = content._used  # noqa: SLF001
        content.close()
        data = os.pread(memory, used, 0)
    finally:
        os.close(memory)
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _log_once(message: str) -> None:
    if message not in _logged and len(_logged) < _MESSAGES:
        _logged.add(message)
        logger.warning(message)
