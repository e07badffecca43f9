"""What do cutovers cost clients, and what is lost without the handoff?

The same cutovers are run twice: with the handoff, and with GLM_HANDOFF=false, where idle connections are closed.
Compare the ratios; absolute times depend on the machine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from deploy.loadtest import Report
from deploy.systemd.sandbox import Sandbox
from tests.bench.measurement import percentile
from tests.bench.output import Output, parser
from tests.bench.two_versions import VersionClients, prepare
from tests.box import Box

CUTOVERS, QUICK_CUTOVERS = 40, 5
INTERVAL = 0.2  # seconds between two cutovers
CLIENTS = 4


def latencies(box: Box, number: int, *, cutovers: bool) -> VersionClients:
    """Measure keep-alive clients for `number` * INTERVAL seconds, with or without cutovers."""
    clients = VersionClients(box, CLIENTS)
    clients.start()
    for _ in range(number):
        if cutovers:
            box.slots.go_live(box.slots.idle)
        time.sleep(INTERVAL)
    clients.stop()
    return clients


def cutover_delays(box: Box, number: int) -> list[float]:
    """Return the ms from the rename to the first response of the new version, on one keep-alive connection."""
    delays = []
    with httpx.Client(base_url=f"http://{box.listen}", trust_env=False) as client:
        for _ in range(number):
            slot = box.slots.idle
            box.slots.go_live(slot)
            renamed = time.monotonic()
            while client.get("/version").headers["x-slot"] != slot:
                pass
            delays.append((time.monotonic() - renamed) * 1000)
    return delays


def mixed_load(box: Box, scratch: Path, number: int) -> Report:
    """Run the mixed load during so many cutovers."""
    with box.load(scratch) as load:
        for _ in range(number):
            box.slots.go_live(box.slots.idle)
            time.sleep(INTERVAL)
        return load.stop()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("handover", __doc__).parse_args(argv)
    output = Output.of("handover", options)
    number = QUICK_CUTOVERS if options.quick else CUTOVERS
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        with Sandbox() as sandbox:
            box = Box(sandbox)
            box.configure(threads=1)
            prepare(box, scratch)
            quiet = latencies(box, number, cutovers=False)
            switching = latencies(box, number, cutovers=True)
            delays = cutover_delays(box, number)
            with_handoff = mixed_load(box, scratch, number)
        with Sandbox() as sandbox:
            box = Box(sandbox)
            box.configure(threads=1, handoff="false")
            prepare(box, scratch)
            without = mixed_load(box, scratch, number)
    half, most = statistics.median(delays), max(delays)
    output.row(
        "losses",
        cutovers=number,
        lost=with_handoff.lost,
        sent=with_handoff.sent,
        lost_without=without.lost,
        sent_without=without.sent,
        delay_ms={"median": half, "max": most},
    )
    output.table(
        f"{number} cutovers, one every {INTERVAL} s",
        ("", "handoff", "without", "target"),
        [
            ("lost requests", *(f"{report.lost} of {report.sent}" for report in (with_handoff, without)), 0),
            ("to the first response of the new version, median ms", half, None, None),
            ("to the first response of the new version, max ms", most, None, "< 100"),
        ],
        "lost: of the mixed load. The first response: after the rename of the symlink",
    )
    rows: list[tuple[object, ...]] = []
    for share in (50, 99):
        before, during = (percentile(clients.latencies, share) for clients in (quiet, switching))
        rows.append((f"p{share} ms", before, during, during / before))
        output.row("latency", share=share, before_ms=before, during_ms=during, ratio=during / before)
    output.table(
        f"GET /version, {CLIENTS} keep-alive clients",
        ("", "no cutovers", "cutovers", "ratio"),
        [*rows, ("lost", quiet.lost, switching.lost, None)],
    )


if __name__ == "__main__":
    main()
