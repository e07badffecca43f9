"""How long do clients wait while `--strategy swap` replaces one model by the other, beyond the load itself?"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.systemd.sandbox import Sandbox
from tests.bench.two_versions import VersionClients, prepare
from tests.box import Box

SWAPS = 4
CLIENTS = 8  # half of them keep their connection


def main(argv: Sequence[str] | None = None) -> None:
    """Swap the two versions in turns, and print."""
    argparse.ArgumentParser(prog="python -m tests.bench.swap", description=__doc__).parse_args(argv)
    table = Table(
        "version", "load s", "longest wait s", "beyond the load s", "pause_ms", "lost", title="--strategy swap"
    )
    table.caption = "target: at most 1 s beyond the load"
    with tempfile.TemporaryDirectory() as directory, Sandbox() as sandbox:
        box = Box(sandbox)
        box.configure(threads=1)
        prepare(box, Path(directory))
        box.systemctl("stop", "glm@green.service")
        for number in range(SWAPS):
            clients = VersionClients(box, CLIENTS, pause=0.01, closing=True)
            clients.start()
            record = box.json("deploy", ["1.1.0", "1.0.0"][number % 2], "--strategy", "swap", "--bake", "0")
            time.sleep(0.5)
            clients.stop()
            at = {step["phase"]: datetime.fromisoformat(step["at"]) for step in record["steps"]}
            load = (at["verify"] - at["start"]).total_seconds()
            longest = max(clients.latencies) / 1000
            table.add_row(
                record["version"],
                f"{load:.2f}",
                f"{longest:.2f}",
                f"{longest - load:.2f}",
                f"{record['pause_ms']:.0f}",
                f"{clients.lost} of {len(clients.latencies)}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
