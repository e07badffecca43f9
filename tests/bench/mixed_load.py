"""The mixed load of deploy.loadtest on any address, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from deploy.loadtest import Report
from tests.box import CODE

__all__ = ["MixedLoad"]

TIME_LIMIT = 20  # seconds after which a request is lost
LONGEST = 900  # seconds after which the load ends by itself


class MixedLoad:
    """Runs within a `with` block; `stop` returns its report.

    `think` is the mean pause in seconds of clients that otherwise send without one. It leaves room on the processors,
    so that a pause shows the switch and not the wait for a processor.
    """

    def __init__(self, address: str, *, scale: float = 1.0, think: float = 0.01) -> None:
        self._command = [
            sys.executable, "-m", "deploy.loadtest", address, "--seconds", str(LONGEST), "--scale", str(scale),
            "--think", str(think), "--time-limit", str(TIME_LIMIT),
        ]  # fmt: skip

    def __enter__(self) -> MixedLoad:
        self._directory = tempfile.TemporaryDirectory()
        self._path = Path(self._directory.name) / "report.json"
        self._log = self._path.with_suffix(".log").open("wb")
        self._process = subprocess.Popen(
            [*self._command, "--json", str(self._path)], cwd=CODE, stdout=self._log, stderr=self._log
        )
        while not self._log_text() and self._process.poll() is None:
            time.sleep(0.05)  # the first line of progress: the clients run since a second
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._log.close()
        self._directory.cleanup()

    def stop(self) -> Report:
        """Let the clients finish what is in flight; raises RuntimeError if the load failed."""
        self._end()
        if not self._path.exists():
            raise RuntimeError(f"the load ended with {self._process.returncode}: {self._log_text()[-500:]}")
        return Report.model_validate_json(self._path.read_text())

    def _log_text(self) -> str:
        return self._path.with_suffix(".log").read_text(errors="replace")

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(TIME_LIMIT + 30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
