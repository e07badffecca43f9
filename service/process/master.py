"""One Gunicorn master and its workers: what the master knows of them, and what it tells systemd.

The master's own loop belongs to Gunicorn, which offers no tick; a timer signal gives us one. A thread would have to be
forked past, and a worker cannot speak for its siblings.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from service.contract.processes import birth, lives
from service.contract.successor import Heir
from service.contract.weights_order import Orders
from service.handover.sockets import Doors
from service.model.release import Release, ReleaseError
from service.process.sdnotify import Manager
from service.routing.ownership import Gate
from service.settings import Settings

NOT_READY = 3
"""Exit status of a generation that could not become ready; the unit does not restart after it. Gunicorn's own."""

_TICK_LOADING = 0.1
_TICK_READY = 1.0
_TICK_VACATED = 0.02
_FRESH = 5.0  # seconds after which a ready worker's silence counts; it writes every second
_KEPT = 16  # accounts of past generations of a slot that are kept for receipts

logger = logging.getLogger("gunicorn.error")


@dataclass
class Generation:
    """A generation as its master holds it; workers inherit it by fork."""

    settings: Settings
    release: Release
    number: int
    directory: Path
    doors: Doors
    manager: Manager
    master: int = field(default_factory=os.getpid)
    parent: int | None = None
    ready: bool = False
    stopping: bool = False
    _seen: object = None

    @classmethod
    def begin(cls, server: Any) -> Generation:
        """Claim the slot's next number and bind its doors; ends the process when the slot holds nothing to serve."""
        settings = Settings()  # from the environment
        manager = Manager()
        try:
            release = Release.read((settings.root / settings.slot).resolve(strict=True))
        except (OSError, ReleaseError) as error:
            reason = f"slot {settings.slot} holds no release that could be served: {error}"
            logger.error("%s", reason)  # noqa: TRY400  (the reason says it all)
            manager.status(f"failed: {reason}")
            sys.exit(NOT_READY)
        slot_directory = settings.runtime / settings.slot
        slot_directory.mkdir(parents=True, exist_ok=True)
        number, directory = _claim(slot_directory)
        generation = cls(
            settings, release, number, directory, Doors.bind(slot_directory, directory), manager,
            parent=server.master_pid or None,
        )  # fmt: skip
        generation.record()
        return generation

    @property
    def gate(self) -> Gate:
        """The gate as every worker of this generation sees it."""
        return Gate(self.settings.root, self.settings.runtime, self.doors.handoff_inode)

    @property
    def orders(self) -> Orders:
        """What the controller wants of the workers of this generation."""
        return Orders(self.settings.root, self.settings.slot, self.directory / "change.json")

    def present_release(self) -> Release:
        """What a worker is to load: the release that the master was born with, or whose weights came in its place."""
        version = self.orders.version(self.release.version)
        if version == self.release.version:
            return self.release
        try:
            return Release.read((self.settings.root / "releases" / version).resolve())
        except ReleaseError as error:
            logger.error("%s", error)  # noqa: TRY400  (the reason says it all)
            return self.release

    def supervise(self, server: Any) -> None:
        """Take the master in hand, now that it has its sockets and signals and before it forks a worker."""
        server.cfg.set("daemon", True)  # asked again by the WINCH handler alone, which else ignores a foreground master
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda sig, frame: self._stop(server, sig, frame))
        signal.signal(signal.SIGALRM, lambda *_: self._tick(server))
        signal.setitimer(signal.ITIMER_REAL, *[_TICK_READY if self.ready else _TICK_LOADING] * 2)

    def end(self) -> None:
        """Say why, if this was not asked for, and leave the slot's paths to others."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        errors = [account["error"] for account in self._accounts(None) if account["error"]]
        if errors and not self.ready:
            self.manager.status(f"failed: {errors[0]}")
        self.doors.withdraw()

    def begin_next(self, server: Any) -> None:
        """Prepare the re-execution that USR2 asks for; runs in the forked child.

        systemd's listening sockets must stand at descriptor 3 and up, where Gunicorn will look for them and from where
        it moved them. Interpreter and settings are those that the reload found in the unit, not those of our own birth.
        """
        high = [fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD, 100) for listener in server.LISTENERS]
        for descriptor, listener in enumerate(high, start=3):
            os.dup2(listener, descriptor, inheritable=True)
            os.close(listener)
        command = Heir.read(self.directory).enter(server.cfg.env_orig)
        server.START_CTX.update({0: command[0], "args": command})

    def record(self) -> None:
        """Write down who we are, for the account and for the reload that waits for us."""
        document = {
            "generation": self.number,
            "slot": self.settings.slot,
            "version": self.release.version,
            "release": str(self.release.path),
            "master": self.master,
            "born": birth(self.master),
            "parent": self.parent,
            "workers_wanted": self.settings.workers,
            "ready": self.ready,
            "stopping": self.stopping,
            "recorded_at": time.time(),
        }
        temporary = self.directory / "generation.new"
        try:
            temporary.write_text(json.dumps(document))
            temporary.replace(self.directory / "generation.json")
        except OSError as error:  # a full disk must not end the service
            logger.error("cannot write generation %s's record: %s", self.number, error)  # noqa: TRY400

    def _stop(self, server: Any, sig: int, frame: FrameType | None) -> None:
        if os.getpid() != self.master:  # a child between its fork and its own handlers
            os._exit(0)
        if not self.stopping:
            self.stopping = True
            if self.ready:
                self._forward(server)
            if self.doors.are_published:  # else an heir serves the slot, and the unit is not stopping at all
                self.manager.stopping()
            self.doors.withdraw()
            self.record()
        server.signal(sig, frame)

    def _tick(self, server: Any) -> None:
        if os.getpid() != self.master:
            return
        try:
            accounts = self._accounts(set(server.WORKERS))
            if self.ready and not accounts:
                self._forward(server)
            if self.ready and not self.stopping and not self.doors.are_published:
                return  # an heir speaks for the unit now
            release = self.present_release()
            if release is not self.release:
                self.release = release
                self.record()
            if self.stopping:
                self._show_draining(accounts)
            elif self.ready:
                self._show_serving(accounts)
            else:
                self._show_loading(accounts, server.num_workers)
        except Exception:  # nothing that goes wrong in here may reach the arbiter's loop, wherever it stands now
            logger.exception("the master's tick failed")

    def _forward(self, server: Any) -> None:
        """Without workers (WINCH): pass the clients that wait at our door on, as soon as another slot is live."""
        vacated = not server.WORKERS and server.num_workers == 0
        signal.setitimer(signal.ITIMER_REAL, *[_TICK_VACATED if vacated else _TICK_READY] * 2)
        owner = self.gate.owner()
        if vacated and owner and not self.gate.is_open():
            self.doors.forward(owner)

    def _show_loading(self, accounts: list[dict[str, Any]], workers: int) -> None:
        if len(accounts) >= workers > 0 and all(account["phase"] == "ready" for account in accounts):
            self._become_ready()
            return
        if not accounts:
            return
        slowest = min(accounts, key=lambda account: account["progress"])
        step = slowest["step"] or slowest["phase"]
        self.manager.status(f"{self.release.version}: {step}, {slowest['progress']:.0%}")
        seen = [(account["pid"], account["phase"], account["step"], account["progress"]) for account in accounts]
        if seen != self._seen:  # only a load that moves gets more time: one that hangs runs into the unit's time-out
            self._seen = seen
            self.manager.extend_timeout(self.settings.load_stall)

    def _become_ready(self) -> None:
        """The door first, so that who waits for READY can knock; the handoff last, for it opens the gate."""
        self.ready = True
        self.record()
        self.doors.publish("http.sock")
        self.manager.ready(self.master)
        self.doors.publish("handoff.sock")
        self.manager.status(f"{self.release.version}: ready")
        logger.info("generation %s of %s is ready", self.number, self.settings.slot)
        signal.setitimer(signal.ITIMER_REAL, _TICK_READY, _TICK_READY)

    def _show_serving(self, accounts: list[dict[str, Any]]) -> None:
        gate = "open" if self.gate.is_open() else "closed"
        in_flight = sum(account["in_flight"] for account in accounts)
        self.manager.status(f"{self.release.version}: gate {gate}, {in_flight} in flight")
        now = time.time()
        if all(_is_well(account, now) for account in accounts):
            self.manager.watchdog()

    def _show_draining(self, accounts: list[dict[str, Any]]) -> None:
        in_flight = sum(account["in_flight"] for account in accounts)
        self.manager.status(f"{self.release.version}: leaving, {in_flight} in flight")
        if accounts:  # each worker has a drain time of its own; this only keeps systemd from cutting it short
            self.manager.extend_timeout(10)

    def _accounts(self, pids: set[int] | None) -> list[dict[str, Any]]:
        """The workers' state files, of `pids` alone or of all there ever were."""
        found = []
        for path in self.directory.glob("[0-9]*.json"):
            with suppress(OSError, ValueError):
                if pids is None or int(path.stem) in pids:
                    found.append(json.loads(path.read_text()))
        return found


def _is_well(account: dict[str, Any], now: float) -> bool:
    """A worker that loads may be silent; one that said ready must keep saying that its engine answers."""
    if account["phase"] != "ready":
        return True
    return bool(account["answering"]) and now - account["updated_at"] < _FRESH


def _claim(slot_directory: Path) -> tuple[int, Path]:
    """Make the directory of the next generation; the numbers of a slot only grow."""
    taken = sorted(int(path.name) for path in slot_directory.iterdir() if path.name.isdigit())
    for old in taken[:-_KEPT]:
        if not _lives(slot_directory / str(old)):
            shutil.rmtree(slot_directory / str(old), ignore_errors=True)
    number = taken[-1] + 1 if taken else 1
    while True:
        directory = slot_directory / str(number)
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
        else:
            return number, directory


def _lives(directory: Path) -> bool:
    try:
        record = json.loads((directory / "generation.json").read_text())
        return lives(record["master"], record["born"])
    except (OSError, ValueError, KeyError):
        return False
