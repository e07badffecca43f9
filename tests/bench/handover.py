"""What do cutovers cost clients, and what is lost without the handoff?

The same cutovers are run twice: with the handoff, and with GLM_HANDOFF=false, where idle connections are closed.
Compare the ratios; absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from deploy.loadtest import Report
from deploy.systemd.sandbox import Sandbox
from tests.bench.measurement import percentile
from tests.bench.two_versions import VersionClients, prepare
from tests.box import Box

CUTOVERS = 40
INTERVAL = 0.2  # seconds between two cutovers
CLIENTS = 4


def latencies(box: Box, *, cutovers: bool) -> VersionClients:
    """Measure keep-alive clients for CUTOVERS * INTERVAL seconds, with or without cutovers."""
    clients = VersionClients(box, CLIENTS)
    clients.start()
    for _ in range(CUTOVERS):
        if cutovers:
            box.slots.go_live(box.slots.idle)
        time.sleep(INTERVAL)
    clients.stop()
    return clients


def cutover_delays(box: Box) -> list[float]:
    """Return the ms from the rename to the first response of the new version, on one keep-alive connection."""
    delays = []
    with httpx.Client(base_url=f"http://{box.listen}", trust_env=False) as client:
        for _ in range(CUTOVERS):
            slot = box.slots.idle
            box.slots.go_live(slot)
            renamed = time.monotonic()
            while client.get("/version").headers["x-slot"] != slot:
                pass
            delays.append((time.monotonic() - renamed) * 1000)
    return delays


def mixed_load(box: Box, scratch: Path) -> Report:
    """Run the mixed load during CUTOVERS cutovers."""
    with box.load(scratch) as load:
        for _ in range(CUTOVERS):
            box.slots.go_live(box.slots.idle)
            time.sleep(INTERVAL)
        return load.stop()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    argparse.ArgumentParser(prog="python -m tests.bench.handover", description=__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        with Sandbox() as sandbox:
            box = Box(sandbox)
            box.configure(threads=1)
            prepare(box, scratch)
            quiet = latencies(box, cutovers=False)
            switching = latencies(box, cutovers=True)
            delays = cutover_delays(box)
            with_handoff = mixed_load(box, scratch)
        with Sandbox() as sandbox:
            box = Box(sandbox)
            box.configure(threads=1, handoff="false")
            prepare(box, scratch)
            without = mixed_load(box, scratch)
    console = Console()
    table = Table("", "handoff", "without", "target", title=f"{CUTOVERS} cutovers, one every {INTERVAL} s")
    lost = [f"{report.lost} of {report.sent}" for report in (with_handoff, without)]
    table.add_row("lost requests of the mixed load", *lost, "0")
    table.add_row("rename to first response of the new version, median ms", f"{statistics.median(delays):.1f}", "", "")
    table.add_row("rename to first response of the new version, max ms", f"{max(delays):.1f}", "", "< 100")
    console.print(table)
    table = Table("GET /version", "no cutovers", "cutovers", "ratio", title=f"{CLIENTS} keep-alive clients")
    for share in (50, 99):
        before, during = (percentile(clients.latencies, share) for clients in (quiet, switching))
        table.add_row(f"p{share} ms", f"{before:.2f}", f"{during:.2f}", f"{during / before:.2f}")
    table.add_row("lost", str(quiet.lost), str(switching.lost), "")
    console.print(table)


if __name__ == "__main__":
    main()
