"""`make soak`: a thousand cutovers in one run under every kind of client; nothing lost, and nothing left behind.

Every 25th is a whole deploy that begets a new generation, the others are warm rollbacks by `glmctl`. What is left
behind is counted after the first round, when everything has been used once, and at the end. The accounts of past
generations are kept for receipts, 16 of each slot and no more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from deploy.systemd.sandbox import Sandbox
from tests.bench.handover import prepared
from tests.box import Box

CUTOVERS = 1000
ROUND = 25  # cutovers to a deploy
KEPT = 2 * (16 + 1)  # generations of both slots whose accounts may be there: the past ones and the present one
LOOKS = 10
MAY_GROW = 0.1  # of the memory, which allocators round up; nothing else may grow


@dataclass(frozen=True)
class Left:
    """What the host holds: processes, their descriptors and memory, files in memory and on disk (the history apart)."""

    processes: int
    descriptors: int
    memory_mib: float
    runtime_files: int
    state_files: int
    generations: int

    @classmethod
    def of(cls, box: Box) -> Left:
        """Count it."""
        manager = psutil.Process(box.sandbox.manager.pid)
        ours = [manager, *manager.children(recursive=True)]
        generations = list(box.host.runtime.glob("*/[0-9]*/"))
        return cls(
            processes=len(ours),
            descriptors=sum(one.num_fds() for one in ours),
            memory_mib=round(sum(one.memory_full_info().pss for one in ours) / (1 << 20), 1),
            runtime_files=_files(box.host.runtime) - sum(map(_files, generations)),
            state_files=_files(box.host.state) - _files(box.host.state / "history"),
            generations=len(generations),
        )

    @classmethod
    def least(cls, box: Box) -> Left:
        """The least of each in some looks: clients come and go meanwhile, and what stays behind is in all of them."""
        looks = [asdict(cls.of(box)) for _ in range(LOOKS)]
        return cls(**{name: min(look[name] for look in looks) for name in looks[0]})


def _files(directory: Path) -> int:
    return sum(1 for path in directory.rglob("*") if not path.is_dir() and "metrics" not in path.parts)


@contextmanager
def baking(box: Box, version: str) -> Iterator[None]:
    """A deploy that bakes in another terminal, and is rolled back in this one."""
    deploy = box.begin("deploy", version, "--bake", "1h", "--no-analysis")
    box.await_phase(deploy, "bake")
    yield
    out, _ = deploy.communicate(timeout=120)
    if deploy.returncode != 5:
        raise RuntimeError(out)


def soak(box: Box, cutovers: int, each: int, settle: Callable[[], None], advance: Callable[[], None]) -> None:
    """Switch so often; `settle` is called after each round, when nobody moves."""
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
        settle()
        box.systemctl("stop", f"glm@{box.slots.idle}.service")


def main() -> int:
    """Switch, count, and print; the exit code is 1 when anything was lost or left behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cutovers", type=int, default=CUTOVERS)
    parser.add_argument("--round", type=int, default=ROUND, help="cutovers to a deploy")
    parser.add_argument("--scale", type=float, default=0.3, help="of the hard load")
    asked = parser.parse_args()
    left: list[Left] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, Sandbox() as sandbox, Progress() as bar:
        box = prepared(Box(sandbox), Path(directory))
        box.systemctl("stop", "glm@green.service")
        box.configure(threads=1)
        task = bar.add_task("cutovers", total=asked.cutovers)

        def settle() -> None:
            left.append(Left.least(box))
            bar.console.print(
                f"{bar.tasks[task].completed:g} of {asked.cutovers} cutovers, {left[-1].memory_mib:g} MiB"
            )

        with box.load(Path(directory), seconds=24 * 3600, scale=asked.scale) as load:
            soak(box, asked.cutovers, asked.round, settle, lambda: bar.advance(task))
            report = load.stop()
        records = box.json("history")["rollouts"]
    console = Console()
    table = Table("", "after the first round", "at the end", title=f"{asked.cutovers} cutovers")
    first, last = asdict(left[0]), asdict(left[-1])
    for name, value in first.items():
        table.add_row(name.replace("_", " "), f"{value:g}", f"{last[name]:g}")
    console.print(table)
    losses = f": {report.losses}" if report.losses else ""
    console.print(f"{time.monotonic() - began:.0f} s; {report.lost} of {report.sent} requests lost{losses}")
    adds_up = all(record["receipt"] is None or record["receipt"]["adds_up"] for record in records)
    most = {name: value * (1 + MAY_GROW * (name == "memory_mib")) for name, value in first.items()}
    grown = [name for name, value in last.items() if value > (most | {"generations": KEPT})[name]]
    console.print(f"receipts add up: {adds_up}; left behind: {', '.join(grown) or 'nothing'}")
    return int(bool(report.lost or grown or not adds_up))


if __name__ == "__main__":
    sys.exit(main())
