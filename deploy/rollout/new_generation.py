"""The generation that a start or a reload of a unit brings up: its progress, and why it failed."""

from __future__ import annotations

import time
from collections.abc import Callable

from deploy.errors import NotReady
from deploy.rollout.plan import Context
from deploy.rollout.waiting import POLL
from deploy.systemd.systemctl import Job
from service.contract.generations import Generation, generations, started_since

__all__ = ["NewGeneration"]


class NewGeneration:
    """Create it before the job of the unit begins: a generation that exists by then is not the new one."""

    def __init__(self, context: Context, slot: str, version: str) -> None:
        self._context, self._slot, self._version = context, slot, version
        self._unit = context.host.unit(slot)
        self._known = {one.generation for one in generations(context.host.runtime, slot)}

    def wait(self, job: Job, progress: Callable[[], str], *, deadline: float | None = None) -> None:
        """Begin `job` and display `progress` until it has ended.

        Raises NotReady, with the reason, if it failed or was not done after `deadline` seconds.
        """
        begin = time.monotonic()
        with job:
            while not job.done:
                if deadline is not None and time.monotonic() - begin >= deadline:
                    raise NotReady(f"{self._version} was not ready after {deadline:g} s (it was at: {self.load})")
                self._context.display.progress(progress())
                time.sleep(POLL)
        if not job.succeeded:
            raise NotReady(
                f"{self._version} did not become ready: {self.failure}", hint=self._context.log_hint(self._unit)
            )

    @property
    def found(self) -> Generation | None:
        """The new generation; None until it has written its record."""
        return next(iter(reversed(self._started)), None)

    @property
    def others(self) -> list[Generation]:
        """The generations that existed before."""
        runtime = self._context.host.runtime
        return [one for one in generations(runtime, self._slot) if one.generation in self._known]

    @property
    def load(self) -> str:
        """How far its load has come, as text."""
        found = self.found
        return found.load_progress if found else "starting"

    @property
    def failure(self) -> str:
        """Why it did not become ready: the error of a worker, else what systemd reports of the unit."""
        error = next((one.error for one in reversed(self._started) if one.error), None)
        if error is not None:
            return error
        unit = self._context.systemd.state(self._unit)
        if unit.status.startswith("failed: "):
            return unit.status.removeprefix("failed: ")
        if unit.active == "active":  # result and status are those of the generation before, which serves on
            return "the unit runs on, and no new generation appeared; its log has the reason"
        step = f" (it was at: {unit.status})" if unit.status else ""
        return {
            "timeout": f"it made no progress until systemd's start time-out{step}",
            "watchdog": f"its watchdog expired{step}",
            "signal": f"it was killed{step}",
            "core-dump": f"it crashed{step}",
            "success": f"it ended before it was ready{step}",
        }.get(unit.result, f"it ended ({unit.result}){step}")

    @property
    def _started(self) -> list[Generation]:
        return started_since(self._context.host.runtime, self._slot, self._known)
