"""`python -m service.process.reload`: the unit's ExecReload, which replaces the slot's generation in place.

USR2 starts a new master beside the old one, which owns the connections once it is ready. Then the old generation
finishes the requests in flight; WINCH ends its workers, and QUIT its master. If the new generation does not become
ready, it is ended, and the old one goes on serving. `systemctl reload` waits for this command.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from service.contract.generations import Generation, generations
from service.contract.slots import generation_directory
from service.contract.successor import Successor
from service.contract.worker_state import WorkerState
from service.process.sdnotify import ServiceManager
from service.settings import Settings

_POLL = 0.02  # seconds
_USR2_INTERVAL = 0.5  # seconds between two USR2. A master that has just replaced another one ignores the first
_START_TIMEOUT = 60.0  # seconds until the new master, which imports torch first, has written its generation's record
_EXIT_TIMEOUT = 10.0  # seconds until a process has exited after its signal


class ReloadError(Exception):
    """The reload failed; the old generation goes on serving."""


class OldGeneration:
    """The generation that is to be replaced."""

    def __init__(self, record: Generation, settings: Settings, manager: ServiceManager) -> None:
        self._record = record
        self._settings = settings
        self._manager = manager

    def retire(self) -> None:
        """End it as soon as it is idle, at the latest when the drain time is over."""
        drain, master = self._settings.drain, self._record.master
        if _wait(self._is_idle, drain, manager=self._manager):
            _signal(master, signal.SIGWINCH)
            _wait(lambda: not self._workers(), _EXIT_TIMEOUT)
        else:
            print(f"the drain time of {drain:.0f} s is over; the requests in flight are cut", flush=True)  # noqa: T201
        _signal(master, signal.SIGQUIT)
        _await_exit(self._record)

    def _is_idle(self) -> bool:
        return all(worker.connections == 0 and worker.in_flight == 0 for worker in self._workers())

    def _workers(self) -> list[WorkerState]:
        found = _read(self._settings, self._record.generation)
        return found.alive_workers if found else []


def reload(settings: Settings, main_pid: int, manager: ServiceManager) -> str:
    """Replace the slot's generation by one of the release that its symlink leads to; returns a line for the log.

    Raises ReloadError if the new generation does not become ready.
    """
    found = generations(settings.runtime, settings.slot)
    old = _newest_of(found, main_pid)
    if old is None:
        raise ReloadError(f"no generation of {settings.slot} has the master {main_pid}")
    parent = _newest_of(found, old.parent)
    if parent is not None and parent.is_alive:  # left by a reload that was killed
        OldGeneration(parent, settings, manager).retire()
    Successor.of_this_process().write(_directory(settings, old.generation))
    new = _spawn_successor(settings, old, newest=found[-1].generation)
    _await_ready(settings, new)
    OldGeneration(old, settings, manager).retire()
    return (
        f"{settings.slot}: {old.version} (generation {old.generation}) handed over to "
        f"{new.version} (generation {new.generation})"
    )


def _newest_of(found: list[Generation], master: int | None) -> Generation | None:
    """Return the newest of the generations whose master has this pid."""
    return next((generation for generation in reversed(found) if generation.master == master), None)


def _spawn_successor(settings: Settings, old: Generation, newest: int) -> Generation:
    """Send USR2 until a generation newer than `newest` has written its record; a master with a successor ignores it."""
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        _signal(old.master, signal.SIGUSR2)
        next_signal = time.monotonic() + _USR2_INTERVAL
        while time.monotonic() < next_signal:
            for generation in generations(settings.runtime, settings.slot):
                if generation.parent == old.master and generation.generation > newest:
                    return generation
            time.sleep(_POLL)
    raise ReloadError(f"no new master appeared within {_START_TIMEOUT:.0f} s; see the unit's journal")


def _await_ready(settings: Settings, new: Generation) -> None:
    """Wait until the new generation is ready; raises ReloadError if it ends, or makes no progress."""
    limit = settings.load_stall
    last: object = None
    changed_at = time.monotonic()
    while not new.ready:
        new = _read(settings, new.generation) or new
        progress = [(worker.pid, worker.phase, worker.step, worker.progress) for worker in new.workers]
        if progress != last:
            last, changed_at = progress, time.monotonic()
        if not new.is_alive:
            raise ReloadError(f"{new.version} did not become ready: {new.error or 'its master died'}")
        if time.monotonic() - changed_at > limit:
            _signal(new.master, signal.SIGQUIT)
            _await_exit(new)
            raise ReloadError(f"{new.version} did not become ready: no progress for {limit:.0f} s")
        time.sleep(_POLL)


def _directory(settings: Settings, generation: int) -> Path:
    return generation_directory(settings.runtime, settings.slot, generation)


def _read(settings: Settings, generation: int) -> Generation | None:
    return Generation.read(_directory(settings, generation))


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _await_exit(generation: Generation) -> None:
    """Wait until a master that was sent QUIT has exited, and kill it after the timeout."""
    if not _wait(lambda: not generation.is_alive, _EXIT_TIMEOUT):
        _signal(generation.master, signal.SIGKILL)


def _wait(condition: Callable[[], bool], seconds: float, *, manager: ServiceManager | None = None) -> bool:
    """Wait until `condition` holds; False after `seconds`. With `manager`, the unit's timeout is extended meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        if manager:
            manager.extend_timeout(_EXIT_TIMEOUT)
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def main() -> int:
    """Reload the master $MAINPID; returns the exit status, 0 if the new generation has replaced the old one."""
    try:
        print(reload(Settings(), int(os.environ["MAINPID"]), ServiceManager()))  # noqa: T201
    except ReloadError as error:
        print(f"reload failed, nothing changed: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
