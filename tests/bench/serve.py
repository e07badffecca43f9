"""`transformers serve` as a contender: `python -m tests.bench.serve MODEL --port PORT` is transformers' own command.

Only one thing is changed: where torchvision is not installed, the processor of this architecture cannot be loaded for
the sake of its video part, so ours, which has none, stands in for it. A real picture takes the same way through both.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

__all__ = ["TransformersServe"]

PATIENCE = 120.0  # seconds to come up in


class TransformersServe:
    """A running `transformers serve`, as a context manager."""

    def __init__(self, model: Path, log: Path, *, threads: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        host, port = self.address.split(":")
        self._words = [sys.executable, "-m", "tests.bench.serve", str(model), "--host", host, "--port", port]
        self._words += ["--device", "cpu", "--dtype", "auto", "--log-level", "error"]
        self._log = log
        self._env = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def __enter__(self) -> TransformersServe:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._words, stdout=log, stderr=log, env=self._env)
        deadline = time.monotonic() + PATIENCE
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"transformers serve did not come up:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}/health", trust_env=False).is_success
        except httpx.TransportError:
            return False


def main() -> None:
    """Become `transformers serve`; does not return."""
    from transformers.cli.transformers import main as transformers
    from transformers.models import glm46v
    from transformers.utils import is_torchvision_available

    from service.model.processor import Processor

    if not is_torchvision_available():
        glm46v.Glm46VProcessor = Processor
    sys.argv[1:1] = ["serve"]
    transformers()


if __name__ == "__main__":
    main()
