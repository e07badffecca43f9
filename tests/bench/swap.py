"""`make bench`: how long clients wait while one copy takes the place of the other, beside the load itself."""

from __future__ import annotations

import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from deploy.systemd.sandbox import Sandbox
from tests.bench.handover import prepared
from tests.box import Box

SWAPS = 4
CLIENTS = 8  # half of them keep their connection


class Clients:
    """Clients that ask for the version, one request after the other, through everything."""

    def __init__(self, box: Box) -> None:
        self.longest = 0.0
        self.sent = self.lost = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(box, number % 2 == 0)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, box: Box, keeps: bool) -> None:
        headers = {} if keeps else {"connection": "close"}
        with httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=300) as client:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    client.get("/version", headers=headers).raise_for_status()
                except httpx.HTTPError:
                    self.lost += 1
                self.longest = max(self.longest, time.monotonic() - began)
                self.sent += 1
                time.sleep(0.01)

    def end(self) -> None:
        """Stop asking."""
        self._over.set()
        for thread in self._threads:
            thread.join()


def main() -> None:
    """Swap to and fro, and print."""
    table = Table(
        "swap", "load s", "longest wait s", "beyond the load s", "pause told ms", "lost", title="--strategy swap"
    )
    with tempfile.TemporaryDirectory() as directory, Sandbox() as sandbox:
        box = Box(sandbox)
        box.configure(threads=1)
        prepared(box, Path(directory))
        box.systemctl("stop", "glm@green.service")
        for number in range(SWAPS):
            clients = Clients(box)
            record = box.json("deploy", ["1.1.0", "1.0.0"][number % 2], "--strategy", "swap", "--bake", "0")
            time.sleep(0.5)
            clients.end()
            at = {step["phase"]: datetime.fromisoformat(step["at"]) for step in record["steps"]}
            load = (at["verify"] - at["start"]).total_seconds()
            table.add_row(
                record["version"],
                f"{load:.2f}",
                f"{clients.longest:.2f}",
                f"{clients.longest - load:.2f} (target 1)",
                f"{record['pause_ms']:.0f}",
                f"{clients.lost} of {clients.sent}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
