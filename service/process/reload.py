"""`python -m service.process.reload`: the unit's ExecReload, which hands the slot over in place.

USR2 begets a new master beside the old one. When it is ready it owns the connections; the old generation finishes what
it began, WINCH sends its workers home and QUIT ends it. If the new one does not become ready it is ended instead, and
the old one never stopped serving. `systemctl reload` returns with this command, so this command is the one that waits.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from service.contract.processes import lives
from service.contract.successor import Heir
from service.process.sdnotify import Manager
from service.settings import Settings

_POLL = 0.02
_ASK_AGAIN = 0.5  # a master that was just promoted ignores the first USR2; one that has a child ignores the second
_BIRTH = 30.0  # seconds for an interpreter to start and to write down that a new master lives
_FAREWELL = 10.0


class ReloadError(Exception):
    """The slot is served by the generation that served it before."""


class Elder:
    """The generation that is to be relieved, seen from outside: its master and its files."""

    def __init__(self, record: dict[str, Any], directory: Path, manager: Manager) -> None:
        self._manager = manager
        self.master: int = record["master"]
        self.born: int = record["born"]
        self.directory = directory

    def is_idle(self) -> bool:
        """Whether its living workers hold nothing any more."""
        return all(a["connections"] == 0 and a["in_flight"] == 0 for a in _accounts(self.directory))

    def relieve(self, drain: float) -> None:
        """End it: at once when it is idle, after `drain` seconds whatever it still does."""
        if _wait(self.is_idle, drain, told=self._manager):
            _signal(self.master, signal.SIGWINCH)
            _wait(lambda: not _accounts(self.directory), _FAREWELL)
        else:
            print(f"drain time of {drain:.0f} s is over, cutting what is left", flush=True)  # noqa: T201
        _signal(self.master, signal.SIGQUIT)
        if not _wait(lambda: not lives(self.master, self.born), _FAREWELL):
            _signal(self.master, signal.SIGKILL)


def reload(settings: Settings, main_pid: int, manager: Manager) -> str:
    """Hand the slot over to a generation of whatever its symlink names now; returns a line that says what happened.

    Raises ReloadError when the new generation did not become ready.
    """
    slot = settings.runtime / settings.slot
    record, directory = _find(slot, lambda record: record["master"] == main_pid)
    if record is None:
        raise ReloadError(f"no generation of {settings.slot} has the master {main_pid}")
    elder, directory_of_elder = _find(slot, lambda other: other["master"] == record["parent"])
    if elder is not None and record["parent"] and lives(elder["master"], elder["born"]):
        Elder(elder, directory_of_elder, manager).relieve(settings.drain)  # left behind by a reload that was killed
    Heir.of_this_process().write(directory)
    heir, heir_directory = _beget(slot, main_pid)
    _await_ready(heir, heir_directory, settings.load_stall)
    Elder(record, directory, manager).relieve(settings.drain)
    return f"{settings.slot}: {record['version']} (generation {record['generation']}) handed over to " + (
        f"{heir['version']} (generation {heir['generation']})"
    )


def _beget(slot: Path, master: int) -> tuple[dict[str, Any], Path]:
    newest = max(int(path.parent.name) for path in slot.glob("*/generation.json"))  # an heir before may have failed
    deadline = time.monotonic() + _BIRTH
    while time.monotonic() < deadline:
        _signal(master, signal.SIGUSR2)
        ask_again_at = time.monotonic() + _ASK_AGAIN
        while time.monotonic() < ask_again_at:
            heir, directory = _find(slot, lambda r: r["parent"] == master and r["generation"] > newest)
            if heir is not None:
                return heir, directory
            time.sleep(_POLL)
    raise ReloadError(f"no new master appeared within {_BIRTH:.0f} s; the journal of the unit says why")


def _await_ready(heir: dict[str, Any], directory: Path, patience: float) -> None:
    seen: object = None
    seen_at = time.monotonic()
    while not (_read(directory / "generation.json") or heir)["ready"]:
        steps = [(a["pid"], a["phase"], a["step"], a["progress"]) for a in _accounts(directory, living=False)]
        if steps != seen:
            seen, seen_at = steps, time.monotonic()
        why = next((a["error"] for a in _accounts(directory, living=False) if a["error"]), None)
        if not lives(heir["master"], heir["born"]):
            raise ReloadError(f"{heir['version']} did not become ready: {why or 'its master died'}")
        if time.monotonic() - seen_at > patience:
            _signal(heir["master"], signal.SIGQUIT)
            if not _wait(lambda: not lives(heir["master"], heir["born"]), _FAREWELL):
                _signal(heir["master"], signal.SIGKILL)
            raise ReloadError(f"{heir['version']} did not become ready: no progress for {patience:.0f} s")
        time.sleep(_POLL)


def _find(slot: Path, wanted: Callable[[dict[str, Any]], bool]) -> tuple[dict[str, Any] | None, Path]:
    for path in sorted(slot.glob("*/generation.json"), key=lambda path: -int(path.parent.name)):
        record = _read(path)
        if record and wanted(record):
            return record, path.parent
    return None, slot


def _accounts(directory: Path, *, living: bool = True) -> list[dict[str, Any]]:
    found = [_read(path) for path in directory.glob("[0-9]*.json")]
    return [a for a in found if a and (not living or (a["phase"] != "gone" and lives(a["pid"], a["born"])))]


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads(path.read_text()))
    return {}


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait(condition: Callable[[], bool], seconds: float, *, told: Manager | None = None) -> bool:
    """Wait for `condition`; `told` is asked not to time our command out meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        if told:
            told.extend_timeout(_FAREWELL)
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def main() -> int:
    """Run as ExecReload: $MAINPID names the master; the exit status is 0 only after a handover."""
    try:
        print(reload(Settings(), int(os.environ["MAINPID"]), Manager()))  # noqa: T201
    except ReloadError as error:
        print(f"reload failed, nothing changed: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
