"""`python -m service.process.reload`: the unit's ExecReload, which hands the slot over in place.

USR2 starts a new master beside the old one. When it is ready it owns the connections. The old generation finishes the
requests in flight, WINCH ends its workers and QUIT its master. If the new generation does not become ready it is ended
instead, and the old one has served all the time. `systemctl reload` returns when this command does.
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
_USR2_AGAIN = 0.5  # seconds; a master that was just promoted ignores the first USR2, one that has a child the second
_START = 30.0  # seconds for an interpreter to start and to write the new generation's record
_END = 10.0  # seconds for a process that was told to end


class ReloadError(Exception):
    """The reload failed; the generation that served before still does."""


class OldGeneration:
    """The generation that is to be replaced."""

    def __init__(self, record: Generation, settings: Settings, manager: ServiceManager) -> None:
        self._record = record
        self._settings = settings
        self._manager = manager

    def retire(self) -> None:
        """End it: as soon as it is idle, at the latest when the drain time is over."""
        drain, master = self._settings.drain, self._record.master
        if _wait(self._is_idle, drain, manager=self._manager):
            _signal(master, signal.SIGWINCH)
            _wait(lambda: not self._workers(), _END)
        else:
            print(f"the drain time of {drain:.0f} s is over, ending what is left", flush=True)  # noqa: T201
        _signal(master, signal.SIGQUIT)
        _end(self._record)

    def _is_idle(self) -> bool:
        return all(worker.connections == 0 and worker.in_flight == 0 for worker in self._workers())

    def _workers(self) -> list[WorkerState]:
        found = _read(self._settings, self._record.generation)
        return found.alive_workers if found else []


def reload(settings: Settings, main_pid: int, manager: ServiceManager) -> str:
    """Hand the slot over to a new generation of the release that its symlink leads to; returns a line for the log.

    Raises ReloadError when the new generation did not become ready.
    """
    found = generations(settings.runtime, settings.slot)
    old = next((one for one in reversed(found) if one.master == main_pid), None)
    if old is None:
        raise ReloadError(f"no generation of {settings.slot} has the master {main_pid}")
    left = next((one for one in reversed(found) if one.master == old.parent), None)
    if left is not None and left.is_alive:  # left by a reload that was killed
        OldGeneration(left, settings, manager).retire()
    Successor.of_this_process().write(_directory(settings, old))
    new = _spawn_successor(settings, old, newest=found[-1].generation)
    _await_ready(settings, new)
    OldGeneration(old, settings, manager).retire()
    return (
        f"{settings.slot}: {old.version} (generation {old.generation}) handed over to "
        f"{new.version} (generation {new.generation})"
    )


def _spawn_successor(settings: Settings, old: Generation, newest: int) -> Generation:
    """Send USR2 until a new generation has written its record; an earlier successor may have failed."""
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        _signal(old.master, signal.SIGUSR2)
        again_at = time.monotonic() + _USR2_AGAIN
        while time.monotonic() < again_at:
            for one in generations(settings.runtime, settings.slot):
                if one.parent == old.master and one.generation > newest:
                    return one
            time.sleep(_POLL)
    raise ReloadError(f"no new master appeared within {_START:.0f} s; see the unit's journal")


def _await_ready(settings: Settings, new: Generation) -> None:
    patience = settings.load_stall
    seen: object = None
    seen_at = time.monotonic()
    while not new.ready:
        new = _read(settings, new.generation) or new
        steps = [(worker.pid, worker.phase, worker.step, worker.progress) for worker in new.workers]
        if steps != seen:
            seen, seen_at = steps, time.monotonic()
        if not new.is_alive:
            raise ReloadError(f"{new.version} did not become ready: {new.error or 'its master died'}")
        if time.monotonic() - seen_at > patience:
            _signal(new.master, signal.SIGQUIT)
            _end(new)
            raise ReloadError(f"{new.version} did not become ready: no progress for {patience:.0f} s")
        time.sleep(_POLL)


def _directory(settings: Settings, one: Generation) -> Path:
    return generation_directory(settings.runtime, settings.slot, one.generation)


def _read(settings: Settings, generation: int) -> Generation | None:
    return Generation.read(generation_directory(settings.runtime, settings.slot, generation))


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _end(one: Generation) -> None:
    """Wait for a master that was sent QUIT, and kill it if it stays."""
    if not _wait(lambda: not one.is_alive, _END):
        _signal(one.master, signal.SIGKILL)


def _wait(condition: Callable[[], bool], seconds: float, *, manager: ServiceManager | None = None) -> bool:
    """Wait until `condition` holds, and extend the command's timeout meanwhile; False after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if manager:
            manager.extend_timeout(_END)
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def main() -> int:
    """Run as ExecReload; $MAINPID names the master. The exit status is 0 only after a handover."""
    try:
        print(reload(Settings(), int(os.environ["MAINPID"]), ServiceManager()))  # noqa: T201
    except ReloadError as error:
        print(f"reload failed, nothing changed: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
