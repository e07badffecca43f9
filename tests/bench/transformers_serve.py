"""The baseline over HTTP: `transformers serve`, which this module runs with its command line unchanged.

One class is replaced: without torchvision the processor of this architecture cannot be loaded, because of its video
part. The service's processor, which has no video part, is used then; both process images in the same way.
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

START_TIMEOUT = 120.0  # seconds


class TransformersServe:
    """A running `transformers serve`, as a context manager."""

    def __init__(self, model: Path, log: Path, *, threads: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        host, port = self.address.split(":")
        self._command = [sys.executable, "-m", "tests.bench.transformers_serve", str(model)]
        self._command += ["--host", host, "--port", port, "--device", "cpu", "--dtype", "auto", "--log-level", "error"]
        self._log = log
        self._env = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def __enter__(self) -> TransformersServe:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._env)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"transformers serve did not start:\n{self._log.read_text()[-2000:]}")
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
    """Run `transformers serve` with the arguments of the command line."""
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
