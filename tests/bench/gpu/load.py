"""The mixed load, and chat clients, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.loadtest import Report as LoadReport
from tests.bench import chat_load
from tests.bench.chat_load import ChatLoad
from tests.bench.gpu.machine import CODE
from tests.bench.measurement import Measurement

__all__ = ["MIXED_SCALE", "MixedLoad", "chats", "mixed_load"]

MIXED_SCALE = 1.5
"""36 clients of eight classes."""
_TIME_LIMIT = 300  # seconds; clients of a swap wait for a load


class MixedLoad:
    """A running load; `stop` ends it and returns its report."""

    def __init__(self, address: str, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)  # that of an earlier run
        # --no-compare: in bf16 an answer depends on the batch
        command = [sys.executable, "-m", "deploy.loadtest", address, "--seconds", "0", "--scale", str(MIXED_SCALE),
                   "--time-limit", str(_TIME_LIMIT), "--no-compare", "--json", str(path)]  # fmt: skip
        with path.with_suffix(".log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=CODE)

    def stop(self) -> LoadReport:
        """Let the requests in flight end, and return the report."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_TIME_LIMIT)
        return LoadReport.model_validate_json(self._path.read_text())

    def kill(self) -> None:
        """End it without a report, if it is running."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextmanager
def mixed_load(address: str, path: Path, *, before: float) -> Iterator[MixedLoad]:
    """Run the load in a block, which begins `before` seconds after its start."""
    load = MixedLoad(address, path)
    try:
        time.sleep(before)
        yield load
    finally:
        load.kill()


def chats(address: str, clients: int, *, rounds: int, tokens: int, first: int) -> Measurement:
    """Run chat clients that send `rounds` requests each and wait for whole answers, with prompts from `first` on."""
    measurement, _ = chat_load.run(ChatLoad(address, "text", clients, rounds, first, tokens, stream=False))
    return measurement
