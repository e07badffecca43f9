"""Rollouts of every strategy under the mixed load, in a private service manager."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.journal.journal import Journal
from deploy.journal.record import Record, seconds_between
from deploy.loadtest import Report as LoadReport
from deploy.systemd import programs
from deploy.systemd.sandbox import Sandbox
from service.contract.slots import Slots
from tests.bench.gpu.figures import STRATEGIES, Value
from tests.bench.gpu.load import mixed_load
from tests.bench.gpu.machine import free_memory
from tests.bench.gpu.releases import GLMCTL, VERSIONS, Plan
from tests.bench.gpu.report import Report, Step

__all__ = ["measure", "rollout_figures"]

_OUTCOMES = {0: "done", 3: "refused", 4: "not ready", 5: "rolled back", 6: "drain cut"}
"""By exit code of glmctl."""


def measure(plan: Plan, report: Report) -> None:
    """Make the first release live, and deploy the other one, in turns, with every strategy. Raises GlmError."""
    plan.clear_slots()
    try:
        with Sandbox(root=plan.root) as sandbox:
            host = _Host(sandbox, plan, report)
            host.configure()
            report.figure("rollouts.missing_program", host.deploy_without_systemd_run())
            with report.step(f"deploy {VERSIONS[0]} on an empty host") as step:
                first = host.glmctl("deploy", VERSIONS[0], "--bake", "0s", step=step)
            if first.code:
                raise RuntimeError(f"glmctl deploy {VERSIONS[0]}: {first.error}")
            report.figure("rollouts.free", free_memory() / 1e9)
            for strategy in STRATEGIES:
                host.roll_out(strategy)
    finally:
        plan.clear_slots()


@dataclass(frozen=True)
class _Command:
    """A run of glmctl; `began` is CLOCK_MONOTONIC, like the times of the load."""

    code: int
    error: str
    began: float
    seconds: float


class _Host:
    """The installation in a sandbox."""

    def __init__(self, sandbox: Sandbox, plan: Plan, report: Report) -> None:
        self._sandbox, self._plan, self._report = sandbox, plan, report

    def configure(self) -> None:
        """Serve the model whatever the caller's environment says."""
        self._sandbox.host.settings.parent.mkdir(parents=True, exist_ok=True)
        self._sandbox.host.settings.write_text("GLM_ENGINE=model\n")

    def glmctl(self, *words: str, step: Step | None = None, env: dict[str, str] | None = None) -> _Command:
        """Run glmctl; its progress is shown in `step`, and the end of it is the `error`."""
        lines: list[str] = []
        began = time.monotonic()
        process = subprocess.Popen(
            [GLMCTL, *words], env=self._sandbox.env | (env or {}), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        with process:
            assert process.stderr is not None
            for line in filter(None, (" ".join(line.split()) for line in process.stderr)):
                lines.append(line)
                if step:
                    step.tell(line)
        return _Command(process.returncode, " ".join(lines[-2:]), began, time.monotonic() - began)

    def deploy_without_systemd_run(self) -> int:
        """Return the exit code of a deploy where systemd-run is not on PATH."""
        with tempfile.TemporaryDirectory() as directory:
            for program in set(programs.ROLLOUT) - {"systemd-run"}:
                if path := shutil.which(program):
                    (Path(directory) / program).symlink_to(path)
            return self.glmctl("deploy", VERSIONS[0], "--dry-run", env={"PATH": directory}).code

    def roll_out(self, strategy: str) -> None:
        """Deploy the version that is not live, under load."""
        slots = Slots(self._plan.root)
        live = slots.version(slots.live) if slots.live else None
        version = next(one for one in VERSIONS if one != live)
        path = self._plan.directory / f"load-{strategy}.json"
        options = self._options(strategy)
        with (
            self._report.step(f"deploy {version}, {strategy}") as step,
            mixed_load(self._sandbox.addresses.listen, path, before=1 if self._plan.quick else 3) as load,
        ):
            command = self.glmctl("deploy", version, *options, step=step)
            time.sleep(1)  # answers of the new version
            report = load.stop()
        record = Journal(self._sandbox.host).last_of("deploy", version)
        note = command.error if command.code else ""
        figures = rollout_figures(strategy, command.code, command.began, command.seconds, live, record, report)
        for name, value in figures.items():
            self._report.figure(name, value, note if name == f"rollouts.{strategy}" else "")

    def _options(self, strategy: str) -> list[str]:
        quick = self._plan.quick
        match strategy:
            case "canary":
                canary = ["--canary", "30", "--step", "2s" if quick else "10s", "--bake", "0s" if quick else "3s"]
                return ["--strategy", "overlap", *canary]
            case "weights":
                return ["--strategy", "weights"]
            case _:
                return ["--strategy", strategy, "--bake", "1s" if quick else "5s"]


def rollout_figures(
    strategy: str,
    code: int,
    began: float,
    seconds: float,
    live: str | None,
    record: Record | None,
    report: LoadReport,
) -> dict[str, Value]:
    """Return the figures of one rollout. `began` is CLOCK_MONOTONIC; `live` was the version before.

    Times of the cutover are None where there was none.
    """
    steps = record.steps if record else []
    found: dict[str, Value] = {
        "": _OUTCOMES.get(code, f"failed with {code}"),
        "_seconds": seconds,
        "_preflight": seconds_between(steps[0].at, steps[1].at) if len(steps) > 1 else None,
        "_switch": _moved_at(report, live, began) if code in {0, 6} else None,
        "_wait": report.longest_pause_ms / 1000,
        "_sent": report.sent,
        "_lost": report.lost,
    }
    figures = {f"rollouts.{strategy}{name}": value for name, value in found.items()}
    if strategy == "weights":
        held = record.pause_ms if record and code in {0, 6} else None
        figures["rollouts.weights_held"] = None if held is None else held / 1000
    return figures


def _moved_at(report: LoadReport, old: str | None, began: float) -> float | None:
    """Return the seconds from `began` until both the last answer by `old` and the first by another version had come."""
    switches = [switch for one in report.by_class.values() for switch in one.switches]
    first = min((switch.answered for switch in switches if switch.version != old), default=None)
    last = max((switch.answered for switch in switches if switch.version == old), default=began)
    return None if first is None else max(first, last) - began
