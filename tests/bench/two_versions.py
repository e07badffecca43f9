"""A host with two versions warm, and clients that request /version without pause."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx

from service.demo_models import tiny
from tests.box import Box

__all__ = ["VersionClients", "prepare"]


def prepare(box: Box, scratch: Path) -> None:
    """Add releases 1.0.0 and 1.1.0, make 1.0.0 live in blue, and start 1.1.0 in green."""
    for version, seed in (("1.0.0", 1), ("1.1.0", 2)):
        if not (scratch / version).exists():
            tiny.make(scratch / version, seed=seed, dtype="float32")  # in bf16 an answer depends on the batch
        box.glmctl("release", "add", str(scratch / version))
    box.glmctl("deploy", "1.0.0")
    box.slots.point("green", "releases/1.1.0")
    box.systemctl("start", "glm@green.service")


class VersionClients:
    """Concurrent clients of GET /version, from `start` to `stop`; `latencies` in ms, failed requests included.

    Of each two clients `closing` makes one close its connection after every request.
    """

    def __init__(self, box: Box, clients: int, *, pause: float = 0.0, closing: bool = False) -> None:
        self.latencies: list[float] = []
        self.lost = 0
        self._url = f"http://{box.listen}"
        self._pause = pause
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(closing and number % 2 == 1,)) for number in range(clients)
        ]

    def start(self) -> None:
        """Begin to send requests."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the responses in flight, and end."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, closes: bool) -> None:
        headers = {"connection": "close"} if closes else {}
        with httpx.Client(base_url=self._url, trust_env=False, timeout=300) as client:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    client.get("/version", headers=headers).raise_for_status()
                except httpx.HTTPError:
                    self.lost += 1
                self.latencies.append((time.monotonic() - started) * 1000)
                time.sleep(self._pause)
