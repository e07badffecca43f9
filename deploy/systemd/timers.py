"""Transient timers that run glmctl later. They do not survive a reboot."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.host import Host
from deploy.systemd.process import run
from deploy.systemd.systemctl import Systemd
from service.contract.slots import SLOTS

__all__ = ["Timers"]

_GUARD = "glm-guard"
_GUARD_INTERVAL = 15.0  # seconds


@dataclass(frozen=True)
class Timers:
    """The timers of one host.

    `glm-retire-<slot>` stops an idle slot at the end of --keep-warm. `glm-guard` runs `glmctl status`, which ends a
    rollout whose controller died, while a swap keeps clients waiting.
    """

    host: Host

    def schedule_retirement(self, slot: str, version: str, seconds: float) -> None:
        """Retire `slot` after `seconds`, if it is idle then and still serves `version`."""
        self._schedule(f"glm-retire-{slot}", ["retire", slot, "--version", version], f"--on-active={seconds:g}")

    def cancel_retirements(self) -> None:
        """Cancel the timers of both slots: a rollout that begins uses the idle slot."""
        for slot in SLOTS:
            self._cancel(f"glm-retire-{slot}")

    def start_guard(self) -> None:
        """Run `glmctl status` every 15 s from now on."""
        self._schedule(_GUARD, ["status"], f"--on-active={_GUARD_INTERVAL:g}", f"--on-unit-active={_GUARD_INTERVAL:g}")

    def stop_guard(self) -> None:
        """Cancel the guard: a slot serves again."""
        self._cancel(_GUARD)

    def _schedule(self, name: str, command: list[str], *when: str) -> None:
        self._cancel(name)
        manager = ["--user"] if self.host.user else []
        glmctl = [str(Path(sys.executable).with_name("glmctl")), *manager, "--root", str(self.host.root)]
        options = ["--quiet", "--collect", f"--unit={name}", *when, "--timer-property=AccuracySec=1s"]
        run(["systemd-run", *manager, *options, "--", *glmctl, *command])

    def _cancel(self, name: str) -> None:
        """Stop the timer, not its service: the calling process may be the one that the timer started."""
        run(Systemd(self.host.user).argv("stop", f"{name}.timer"), check=False)
