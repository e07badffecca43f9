"""What we ask of the service manager. Functions build argv lists; `process` runs them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deploy.systemd.process import begin, run


@dataclass(frozen=True)
class UnitState:
    """A unit as `systemctl show` tells it."""

    load: str
    active: str
    result: str
    status: str
    main_pid: int

    @property
    def exists(self) -> bool:
        """Whether the manager knows the unit."""
        return self.load == "loaded"


@dataclass(frozen=True)
class Systemd:
    """The system manager, or the user's."""

    user: bool

    def argv(self, *words: str) -> list[str]:
        """A systemctl command for this manager."""
        return ["systemctl", *(["--user"] if self.user else []), "--no-pager", *words]

    def start(self, unit: str) -> None:
        """Start `unit` and wait until it is up."""
        run(self.argv("start", unit))

    def start_later(self, unit: str) -> None:
        """Start `unit` and do not wait for it."""
        run(self.argv("start", "--no-block", unit), check=False)

    def starting(self, unit: str) -> Job:
        """Start `unit`; the job tells when that ended and how."""
        return Job(self.argv("start", unit))

    def reloading(self, unit: str) -> Job:
        """Reload `unit`; the job tells when that ended and how."""
        return Job(self.argv("reload", unit))

    def stop(self, unit: str) -> None:
        """Stop `unit`, wait until it is down, and forget that it ever failed."""
        run(self.argv("stop", unit), check=False)
        run(self.argv("reset-failed", unit), check=False)

    def kill_main(self, unit: str, signal: str) -> None:
        """Send a signal to the unit's main process alone."""
        run(self.argv("kill", "--kill-whom=main", f"--signal={signal}", unit), check=False)

    def daemon_reload(self) -> None:
        """Read the unit files again."""
        run(self.argv("daemon-reload"))

    def state(self, unit: str) -> UnitState:
        """What `unit` does now."""
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
        """The bytes that `unit` may take; None without a limit."""
        said = self._show(unit, "MemoryMax").get("MemoryMax", "")
        return int(said) if said.isdigit() else None

    def environment(self, unit: str) -> dict[str, str]:
        """The Environment= of `unit`."""
        words = self._show(unit, "Environment").get("Environment", "").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def backlog(self) -> int:
        """How many connections may wait at the public socket, as its unit says."""
        said = self._show("glm.socket", "Backlog").get("Backlog", "")
        return int(said) if said.isdigit() else 0

    def listen(self) -> str | None:
        """The host:port of the public socket; None when the unit is not installed."""
        shown = self._show("glm.socket", "Listen").get("Listen", "")
        return shown.split(" ")[0] or None

    def _show(self, unit: str, names: str) -> dict[str, str]:
        lines = run(self.argv("show", unit, f"--property={names}"), check=False).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


class Job:
    """A systemctl command under way."""

    def __init__(self, argv: list[str]) -> None:
        self._process = begin(argv)
        self.began = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self._process.returncode == 0

    def close(self) -> None:
        """See the command off: interrupted, it must not ask for a start after we have undone it."""
        if not self.done:
            self._process.terminate()
        self._process.communicate()
