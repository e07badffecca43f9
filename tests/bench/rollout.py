"""How long is it from the command until the new version answers everything, and what of it is ours?

`glmctl deploy` replaces one version by the other under a small mixed load. The clock runs from the start of the command
to the last answer of the old version and the first of the new one. Beside each rollout the same model is loaded and
warmed up in a process that does nothing else; the difference is what preflight, start, checks and switch take.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from deploy.journal.record import Record, seconds_between
from deploy.loadtest import Report
from service.demo_models import tiny
from tests.bench.mixed_load import MixedLoad
from tests.bench.output import Output, parser
from tests.bench.peers.peer import VERSIONS
from tests.box import CODE, Box, empty_host

ROLLOUTS, QUICK_ROLLOUTS = 4, 2
SCALE = 0.25
PHASES = ("preflight", "prepare", "start", "verify")
"""Those before the cutover."""


def bare_load(release: Path) -> float:
    """Return the seconds from the start of a process to the end of its warm-up; raises CalledProcessError."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bare_load", str(release)],
        cwd=CODE, check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return max(time.monotonic() - began, sum(parts.values()))


def moved_after(report: Report, old: str, began: float) -> float | None:
    """Return the seconds from `began` to both the last answer of `old` and the first of another; None without one."""
    switches = [switch for one in report.by_class.values() for switch in one.switches]
    first = min((one.answered for one in switches if one.version != old and one.sent > began), default=None)
    last = max((one.answered for one in switches if one.version == old), default=began)
    return None if first is None else max(first, last) - began


def phases(record: Record) -> dict[str, float]:
    """Return the seconds of each phase before the cutover."""
    following = zip(record.steps, record.steps[1:], strict=False)
    spent: dict[str, float] = {step.phase: seconds_between(step.at, after.at) or 0.0 for step, after in following}
    return {name: spent.get(name, 0.0) for name in PHASES}


def roll_out(box: Box, old: str, new: str) -> dict[str, Any]:
    """Deploy under load; returns the figures, times in seconds."""
    with MixedLoad(box.listen, scale=SCALE, think=0.05) as load:
        began = time.monotonic()
        document = box.json("deploy", new, "--bake", "0s")
        command = time.monotonic() - began
        time.sleep(1)  # answers of the new version
        report = load.stop()
    record = Record.model_validate(document)
    return {
        "moved": moved_after(report, old, began),
        "command": command,
        "phases": phases(record),
        "sent": report.sent,
        "lost": report.lost,
        "longest_pause_ms": report.longest_pause_ms,
    }


def show(output: Output, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    output.table(
        "from the command to the new version alone, seconds",
        ("", "bare load", "to 100 %", "ours", *PHASES, "lost"),
        (
            (f"rollout {number}", row["bare_load"], row["moved"], row["ours"],
             *(row["phases"][name] for name in PHASES), row["lost"])
            for number, row in enumerate(rows, 1)
        ),
        "ours: what the rollout takes beyond the bare load. The phases are those before the cutover; `start` has the "
        "load and the release's checks in it",
    )  # fmt: skip
    known = [row["ours"] for row in rows if row["ours"] is not None]
    if known:
        output.note(f"ours, median: {median(known):.2f} s")


def main(argv: Sequence[str] | None = None) -> None:
    """Roll out the two versions in turns, and print."""
    options_parser = parser("rollout", __doc__)
    options_parser.add_argument(
        "--rollouts", type=int, metavar="N", help=f"[{ROLLOUTS}, with --quick {QUICK_ROLLOUTS}]"
    )
    options = options_parser.parse_args(argv)
    output = Output.of("rollout", options)
    rows = []
    with tempfile.TemporaryDirectory() as directory, empty_host("model") as box:
        for seed, version in enumerate(VERSIONS, 1):
            tiny.make(Path(directory) / version, seed=seed, size="small", dtype="float32")
        box.stock({version: Path(directory) / version for version in VERSIONS})
        box.glmctl("deploy", VERSIONS[0])
        for number in range(options.rollouts or (QUICK_ROLLOUTS if options.quick else ROLLOUTS)):
            old, new = VERSIONS[number % 2], VERSIONS[(number + 1) % 2]
            output.progress(f"{old} to {new}")
            found = roll_out(box, old, new)
            bare = bare_load(box.host.root / "releases" / new)
            ours = None if found["moved"] is None else found["moved"] - bare
            rows.append(output.row("rollout", bare_load=bare, ours=ours, **found))
    show(output, rows)


if __name__ == "__main__":
    main()
