"""Transient timers that run glmctl later. A reboot ends them; glm-live.service starts the guards again."""

from __future__ import annotations

import os
from dataclasses import dataclass

from deploy import interrupts
from deploy.errors import GlmError
from deploy.host import Host
from deploy.systemd.process import run
from deploy.systemd.systemctl import Systemd
from deploy.systemd.units import glmctl
from service.contract.slots import SLOTS

__all__ = ["Timers"]

_INTERVAL = 15.0  # seconds between two runs of a guard; tests set GLM_GUARD_SECONDS


@dataclass(frozen=True)
class Timers:
    """The timers of one host.

    `glm-retire-<slot>` stops an idle slot at the end of --keep-warm. `glm-guard-<id>` runs `glmctl resume` while the
    rollout with that id changes the host, for the case that its controller dies.
    """

    host: Host

    def schedule_retirement(self, slot: str, version: str, seconds: float) -> None:
        """Retire `slot` after `seconds`, if it is idle then and still serves `version`."""
        self._schedule(f"glm-retire-{slot}", ["retire", slot, "--version", version], f"--on-active={seconds:g}")

    def cancel_retirements(self) -> None:
        """Cancel the timers of both slots: a rollout that begins uses the idle slot."""
        for slot in SLOTS:
            self._cancel(f"glm-retire-{slot}")

    def start_guard(self, identifier: str) -> None:
        """Run `glmctl resume` for the rollout `identifier` every 15 s from now on, unless it does already."""
        name = f"glm-guard-{identifier}"
        if Systemd(self.host.user).state(f"{name}.timer").active == "active":
            return
        seconds = float(os.environ.get("GLM_GUARD_SECONDS") or _INTERVAL)
        self._schedule(
            name, ["resume", "--guard", identifier], f"--on-active={seconds:g}", f"--on-unit-inactive={seconds:g}"
        )

    def stop_guard(self, identifier: str) -> None:
        """Cancel the guard of the rollout `identifier`, which has ended."""
        self._cancel(f"glm-guard-{identifier}")

    def _schedule(self, name: str, command: list[str], *when: str) -> None:
        self._cancel(name)
        manager = ["--user"] if self.host.user else []
        options = ["--quiet", "--collect", f"--unit={name}", *when, "--timer-property=AccuracySec=1s"]
        with interrupts.held():  # else nobody knows whether the timer exists
            try:
                run(["systemd-run", *manager, *options, "--", *glmctl(self.host), *command])
            except GlmError:
                # repeated, it fails if the manager had made the timer and executed itself anew before it answered
                if Systemd(self.host.user).state(f"{name}.timer").active != "active":
                    raise

    def _cancel(self, name: str) -> None:
        """Stop the timer, not its service: the calling process may be the one that the timer started."""
        run(Systemd(self.host.user).argv("stop", f"{name}.timer"), check=False)
