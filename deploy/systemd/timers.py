"""What the service manager does for us later: glmctl itself, by a transient timer that a reboot forgets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.host import SLOTS, Host
from deploy.systemd.process import run
from deploy.systemd.systemctl import Systemd

__all__ = ["Timers"]

_GUARD = "glm-guard"
_EVERY = 15.0  # seconds between two looks of the guard


@dataclass(frozen=True)
class Timers:
    """The timers of one host."""

    host: Host

    def schedule_retirement(self, slot: str, version: str, seconds: float) -> None:
        """Have `slot` retired after so many seconds, if it is idle then and still serves `version`."""
        self._later(f"glm-retire-{slot}", ["retire", slot, "--version", version], f"--on-active={seconds:g}")

    def cancel_retirements(self) -> None:
        """Forget the retirements to come: who rolls out sees to the idle slot himself."""
        for slot in SLOTS:
            self._forget(f"glm-retire-{slot}")

    def start_guard(self) -> None:
        """While nobody serves: have a rollout whose controller died ended without waiting for the next command."""
        self._later(_GUARD, ["status"], f"--on-active={_EVERY:g}", f"--on-unit-active={_EVERY:g}")

    def stop_guard(self) -> None:
        """Somebody serves again."""
        self._forget(_GUARD)

    def _later(self, name: str, words: list[str], *when: str) -> None:
        self._forget(name)
        manager = ["--user"] if self.host.user else []
        glmctl = [str(Path(sys.executable).with_name("glmctl")), *manager, "--root", str(self.host.root)]
        options = ["--quiet", "--collect", f"--unit={name}", *when, "--timer-property=AccuracySec=1s"]
        run(["systemd-run", *manager, *options, "--", *glmctl, *words])

    def _forget(self, name: str) -> None:
        """The timer alone: what it started may be who asks."""
        run(Systemd(self.host.user).argv("stop", f"{name}.timer"), check=False)
