"""`make bench`: what a handover costs, as ratios from one run, beside the same server without handoff.

Absolute times depend on the machine; the ratios are what to look at.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from deploy.loadtest import Report
from deploy.systemd.sandbox import Sandbox
from service.demo_models import tiny
from tests.box import Box

SWITCHES = 40
PACE = 0.2  # seconds between two switches
CLIENTS = 4


@dataclass
class Clients:
    """Keep-alive clients that ask for the version, one request after the other."""

    listen: str
    took: list[float] = field(default_factory=list)
    lost: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, seconds: float) -> None:
        """Ask for so long."""
        threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.stop.set()
        for thread in threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=f"http://{self.listen}", trust_env=False, timeout=30) as client:
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    client.get("/version").raise_for_status()
                except httpx.HTTPError:
                    self.lost += 1
                self.took.append((time.monotonic() - began) * 1000)

    @property
    def p50(self) -> float:
        """Median latency in ms."""
        return statistics.median(self.took)

    @property
    def p99(self) -> float:
        """99th percentile in ms."""
        return statistics.quantiles(self.took, n=100)[98]


def latency(box: Box, *, switching: bool) -> Clients:
    """The clients' latency, with or without a switch every PACE seconds."""
    clients = Clients(box.listen)
    runner = threading.Thread(target=clients.run, args=(SWITCHES * PACE,))
    runner.start()
    while runner.is_alive():
        if switching:
            box.slots.go_live(box.slots.idle)
        time.sleep(PACE)
    runner.join()
    return clients


def until_followed(box: Box) -> list[float]:
    """Milliseconds from the rename to the first answer of the other version on one keep-alive connection."""
    took = []
    with httpx.Client(base_url=f"http://{box.listen}", trust_env=False) as client:
        for _ in range(SWITCHES):
            wanted = box.slots.idle
            box.slots.go_live(wanted)
            renamed = time.monotonic()
            while client.get("/version").headers["x-slot"] != wanted:
                pass
            took.append((time.monotonic() - renamed) * 1000)
    return took


def hard_load(box: Box, scratch: Path) -> Report:
    """The hard load under SWITCHES switches."""
    with box.load(scratch) as load:
        for _ in range(SWITCHES):
            box.slots.go_live(box.slots.idle)
            time.sleep(PACE)
        return load.stop()


def prepared(box: Box, scratch: Path) -> Box:
    """Both versions up and warm, 1.0.0 live."""
    for version, seed in (("1.0.0", 1), ("1.1.0", 2)):
        if not (scratch / version).exists():
            tiny.make(scratch / version, seed=seed, dtype="float32")  # in bf16 an answer depends on the batch
        box.glmctl("release", "add", str(scratch / version))
    box.glmctl("deploy", "1.0.0")
    box.slots.point("green", "releases/1.1.0")
    box.systemctl("start", "glm@green.service")
    return box


def main() -> None:
    """Measure and print."""
    table = Table("what", "handoff", "without", "ratio", title=f"{SWITCHES} switches, one every {PACE} s")
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        with Sandbox() as sandbox:
            box = Box(sandbox)
            box.configure(threads=1)
            prepared(box, scratch)
            quiet = latency(box, switching=False)
            switching = latency(box, switching=True)
            followed = until_followed(box)
            ours = hard_load(box, scratch)
        with Sandbox() as sandbox:
            box = Box(sandbox)
            box.configure(threads=1, handoff="false")
            prepared(box, scratch)
            usual = hard_load(box, scratch)
    table.add_row("lost of the hard load", f"{ours.lost} of {ours.sent}", f"{usual.lost} of {usual.sent}", "")
    table.add_row("rename to first new answer, median ms", f"{statistics.median(followed):.1f}", "", "")
    table.add_row("rename to first new answer, max ms", f"{max(followed):.1f}", "", "target < 100")
    console = Console()
    console.print(table)
    calm = Table("latency of GET /version", "calm", "switching", "ratio", title=f"{CLIENTS} keep-alive clients")
    calm.add_row("p50 ms", f"{quiet.p50:.2f}", f"{switching.p50:.2f}", f"{switching.p50 / quiet.p50:.2f}")
    calm.add_row("p99 ms", f"{quiet.p99:.2f}", f"{switching.p99:.2f}", f"{switching.p99 / quiet.p99:.2f}")
    calm.add_row("lost", str(quiet.lost), str(switching.lost), "")
    console.print(calm)


if __name__ == "__main__":
    main()
