"""How long do clients wait while `--strategy swap` replaces one model by the other, beyond the load itself?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from deploy.systemd.sandbox import Sandbox
from tests.bench.output import Output, parser
from tests.bench.two_versions import VersionClients, prepare
from tests.box import Box

SWAPS, QUICK_SWAPS = 4, 2
CLIENTS = 8  # half of them keep their connection


def main(argv: Sequence[str] | None = None) -> None:
    """Swap the two versions in turns, and print."""
    options = parser("swap", __doc__).parse_args(argv)
    output = Output.of("swap", options)
    rows = []
    with tempfile.TemporaryDirectory() as directory, Sandbox() as sandbox:
        box = Box(sandbox)
        box.configure(threads=1)
        prepare(box, Path(directory))
        box.systemctl("stop", "glm@green.service")
        for number in range(QUICK_SWAPS if options.quick else SWAPS):
            clients = VersionClients(box, CLIENTS, pause=0.01, closing=True)
            clients.start()
            record = box.json("deploy", ["1.1.0", "1.0.0"][number % 2], "--strategy", "swap", "--bake", "0")
            time.sleep(0.5)
            clients.stop()
            at = {step["phase"]: datetime.fromisoformat(step["at"]) for step in record["steps"]}
            load = (at["verify"] - at["start"]).total_seconds()
            longest = max(clients.latencies) / 1000
            rows.append(
                output.row(
                    "swap",
                    version=record["version"],
                    load=load,
                    longest=longest,
                    pause_ms=record["pause_ms"],
                    lost=clients.lost,
                    sent=len(clients.latencies),
                )
            )
    output.table(
        "--strategy swap",
        ("version", "load s", "longest wait s", "beyond the load s", "pause_ms", "lost"),
        (
            (row["version"], row["load"], row["longest"], row["longest"] - row["load"], row["pause_ms"],
             f"{row['lost']} of {row['sent']}")
            for row in rows
        ),
        "target: at most 1 s beyond the load",
    )  # fmt: skip


if __name__ == "__main__":
    main()
