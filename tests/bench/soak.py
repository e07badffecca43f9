"""Is anything lost or left behind after a thousand cutovers under the mixed load?

Every 25th cutover is a deploy that starts a new generation, the others are warm rollbacks by `glmctl`. Processes,
descriptors, memory and files are counted after the first round, when everything has been used once, and at the end.
The exit code is 1 if a request was lost, a receipt does not add up, or a count has grown. The state files of past
generations are kept for receipts, 16 of each slot.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from deploy.systemd.sandbox import Sandbox
from tests.bench.two_versions import prepare
from tests.box import Box

CUTOVERS = 1000
ROUND = 25  # cutovers, the first of which is a deploy
MAX_GENERATIONS = 2 * (16 + 1)  # of both slots: past ones whose state files are kept, and the current one
REPEATS = 10
MAX_MEMORY_GROWTH = 0.1  # share; allocators round up


@dataclass(frozen=True)
class Resources:
    """What the host uses: processes, their descriptors and memory, and files (without the history)."""

    processes: int
    descriptors: int
    memory_mib: float
    runtime_files: int
    state_files: int
    generations: int

    @classmethod
    def of(cls, box: Box) -> Resources:
        """Count the resources now."""
        manager = psutil.Process(box.sandbox.manager.pid)
        processes = [manager, *manager.children(recursive=True)]
        generations = list(box.host.runtime.glob("*/[0-9]*/"))
        return cls(
            processes=len(processes),
            descriptors=sum(process.num_fds() for process in processes),
            memory_mib=round(sum(process.memory_full_info().pss for process in processes) / (1 << 20), 1),
            runtime_files=_files(box.host.runtime) - sum(map(_files, generations)),
            state_files=_files(box.host.state) - _files(box.host.state / "history"),
            generations=len(generations),
        )

    @classmethod
    def minimum(cls, box: Box) -> Resources:
        """Return the minimum of several counts: clients come and go, and what is left behind is in every count."""
        counts = [asdict(cls.of(box)) for _ in range(REPEATS)]
        return cls(**{name: min(count[name] for count in counts) for name in counts[0]})


def _files(directory: Path) -> int:
    return sum(1 for path in directory.rglob("*") if not path.is_dir() and "metrics" not in path.parts)


@contextmanager
def baking(box: Box, version: str) -> Iterator[None]:
    """Run a deploy that bakes until the block has rolled it back."""
    deploy = box.begin("deploy", version, "--bake", "1h", "--no-analysis")
    box.await_phase(deploy, "bake")
    yield
    out, _ = deploy.communicate(timeout=120)
    if deploy.returncode != 5:
        raise RuntimeError(out)


def soak(box: Box, cutovers: int, each: int, after_round: Callable[[], None], advance: Callable[[], None]) -> None:
    """Run cutovers in rounds of `each`; `advance` is called after each cutover."""
    done = 0
    while done < cutovers:
        version = {"blue": "1.1.0", "green": "1.0.0"}[box.slots.live or "blue"]
        with baking(box, version):
            done += 1
            advance()
            for _ in range(min(each, cutovers - done + 1) - 1 or 1):
                box.glmctl("rollback")
                done += 1
                advance()
        after_round()
        box.systemctl("stop", f"glm@{box.slots.idle}.service")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cutovers, count, and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--cutovers", type=int, default=CUTOVERS, help="(default: %(default)s)")
    parser.add_argument("--round", type=int, default=ROUND, help="cutovers for each deploy (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=0.3, help="of the mixed load (default: %(default)s)")
    options = parser.parse_args(argv)
    counts: list[Resources] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, Sandbox() as sandbox, Progress() as bar:
        box = Box(sandbox)
        prepare(box, Path(directory))
        box.systemctl("stop", "glm@green.service")
        box.configure(threads=1)
        task = bar.add_task("cutovers", total=options.cutovers)

        def after_round() -> None:
            counts.append(Resources.minimum(box))
            bar.console.print(
                f"{bar.tasks[task].completed:g} of {options.cutovers} cutovers, {counts[-1].memory_mib:g} MiB"
            )

        with box.load(Path(directory), seconds=24 * 3600, scale=options.scale) as load:
            soak(box, options.cutovers, options.round, after_round, lambda: bar.advance(task))
            report = load.stop()
        records = box.json("history")["rollouts"]
    console = Console()
    table = Table("", "after the first round", "at the end", title=f"{options.cutovers} cutovers")
    first, last = asdict(counts[0]), asdict(counts[-1])
    for name, value in first.items():
        table.add_row(name.replace("_", " "), f"{value:g}", f"{last[name]:g}")
    console.print(table)
    losses = f": {report.losses}" if report.losses else ""
    console.print(f"{time.monotonic() - started:.0f} s; {report.lost} of {report.sent} requests lost{losses}")
    adds_up = all(record["receipt"] is None or record["receipt"]["adds_up"] for record in records)
    limits = first | {"memory_mib": first["memory_mib"] * (1 + MAX_MEMORY_GROWTH), "generations": MAX_GENERATIONS}
    grown = [name for name, value in last.items() if value > limits[name]]
    console.print(f"receipts add up: {adds_up}; left behind: {', '.join(grown) or 'nothing'}")
    return int(bool(report.lost or grown or not adds_up))


if __name__ == "__main__":
    sys.exit(main())
