"""systemctl commands and unit properties. Functions build argv lists; `process` runs them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from deploy import interrupts
from deploy.systemd.process import RECONNECT, is_disconnected, run, start
from service.contract.processes import control_groups

_POLL = 0.02  # seconds between two looks at a job


@dataclass(frozen=True)
class UnitState:
    """The state of a unit as shown by `systemctl show`."""

    load: str
    active: str
    result: str
    status: str
    """The STATUS= text that the service sent."""
    main_pid: int

    @property
    def exists(self) -> bool:
        """Whether the unit file is loaded."""
        return self.load == "loaded"


@dataclass(frozen=True)
class Systemd:
    """The system manager, or the calling user's manager."""

    user: bool

    def argv(self, *words: str) -> list[str]:
        """Return the systemctl command for this manager."""
        return ["systemctl", *(["--user"] if self.user else []), "--no-pager", *words]

    def start(self, unit: str) -> None:
        """Start `unit` and wait until it is active; raises GlmError if it fails."""
        run(self.argv("start", unit))

    def starting(self, unit: str) -> Job:
        """Return the job that starts `unit`."""
        return Job(self.argv("start", unit))

    def reloading(self, unit: str) -> Job:
        """Return the job that reloads `unit`."""
        return Job(self.argv("reload", unit))

    def stop(self, unit: str, watch: Callable[[], object] = lambda: None) -> None:
        """Stop `unit`, wait until it is inactive, and reset its failed state; failures are ignored.

        `watch` is called several times a second meanwhile.
        """
        with Job(self.argv("stop", unit)) as job:
            while not job.done:
                watch()
                time.sleep(_POLL)
        run(self.argv("reset-failed", unit), check=False)

    def restart_if_active(self, unit: str) -> None:
        """Restart `unit` if it runs; failures are ignored."""
        run(self.argv("try-restart", unit), check=False)

    def kill_main(self, unit: str, name: str) -> None:
        """Send the signal `name` to the main process of `unit`; failures are ignored."""
        run(self.argv("kill", "--kill-whom=main", f"--signal={name}", unit), check=False)

    def kill_process(self, unit: str, pid: int, number: signal.Signals) -> None:
        """Send a signal to one process of `unit`; nothing happens if it has ended, or does not belong to the unit.

        Pids come from files that the service writes, and root could end any process.
        """
        group = self._show(unit, "ControlGroup").get("ControlGroup", "")
        with suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                if group and group in control_groups(pid):  # of this process: its pid cannot be reused meanwhile
                    signal.pidfd_send_signal(process, number)
            finally:
                os.close(process)

    def daemon_reload(self) -> None:
        """Make the manager read all unit files again; raises GlmError."""
        run(self.argv("daemon-reload"))

    def state(self, unit: str) -> UnitState:
        """Return the state of `unit`."""
        names = "LoadState,ActiveState,Result,StatusText,MainPID"
        shown = self._show(unit, names)
        return UnitState(
            load=shown.get("LoadState", ""),
            active=shown.get("ActiveState", ""),
            result=shown.get("Result", ""),
            status=shown.get("StatusText", ""),
            main_pid=int(shown.get("MainPID") or 0),
        )

    def memory_max(self, unit: str) -> int | None:
        """Return the MemoryMax= of `unit` in bytes; None without a limit."""
        value = self._show(unit, "MemoryMax").get("MemoryMax", "")
        return int(value) if value.isdigit() else None

    def environment(self, unit: str) -> dict[str, str]:
        """Return the Environment= of `unit`."""
        words = self._show(unit, "Environment").get("Environment", "").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def backlog(self) -> int:
        """Return the Backlog= of the public socket: how many connections may wait; 0 if it is unknown."""
        value = self._show("glm.socket", "Backlog").get("Backlog", "")
        return int(value) if value.isdigit() else 0

    def listen(self) -> str | None:
        """Return the first host:port of the public socket; None if the unit is not installed."""
        return next(iter(self.addresses()), None)

    def addresses(self) -> tuple[str, ...]:
        """Return each host:port of the public socket."""
        lines = run(self.argv("show", "glm.socket", "--property=Listen"), check=False).splitlines()
        return tuple(word for line in lines if (word := line.removeprefix("Listen=").partition(" ")[0]))

    def _show(self, unit: str, names: str) -> dict[str, str]:
        lines = run(self.argv("show", unit, f"--property={names}"), check=False).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


class Job:
    """A job of a unit: it begins with the `with` block, and systemctl, which waits for it, ends with the block.

    A `daemon-reexec` of the manager, as in an upgrade of systemd, closes the connections of all systemctl commands and
    keeps the jobs: the command is run again then, and waits for the same job; only a reload may be done twice.

    However early the block ends, the manager has received the request by then or never does: a `stop` of the unit
    afterwards cancels the job.
    """

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv
        self._began = self._disconnected = 0.0

    def __enter__(self) -> Self:
        try:
            with interrupts.held():  # else the command may run without a process object to end it by
                self._start()
        except KeyboardInterrupt:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with interrupts.held():
            if not self.done:
                self._process.kill()
            self._process.communicate()

    @property
    def done(self) -> bool:
        """Whether the job has ended."""
        if self._process.poll() is None:
            return False
        if self._process.returncode > 0 and self._process.stderr and is_disconnected(self._process.stderr.read()):
            now = time.monotonic()
            if now - self._began > 1:  # it has waited for the job, so that the manager did answer
                self._disconnected = now
            if now - self._disconnected < RECONNECT:
                with interrupts.held():
                    self._process.communicate()  # closes the pipe
                    self._start()
                return False
        return True

    def _start(self) -> None:
        self._process = start(self._argv)
        self._began = time.monotonic()
        self._disconnected = self._disconnected or self._began

    @property
    def succeeded(self) -> bool:
        """Whether the job ended well."""
        return self._process.returncode == 0
