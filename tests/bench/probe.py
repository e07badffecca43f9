"""The latency of GET on one keep-alive connection, measured every 10 ms by a process of its own."""

from __future__ import annotations

import argparse
import http.client
import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence

__all__ = ["Probe"]

PACE = 0.01  # seconds between two requests


class Probe:
    """Sends requests within a `with` block; `latencies` (ms) is set at its end."""

    def __init__(self, address: str, path: str = "/healthz") -> None:
        self._command = [sys.executable, "-m", "tests.bench.probe", address, path]
        self.latencies: list[float] = []

    def __enter__(self) -> Probe:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self._process.stdout.readline()  # the connection is open
        return self

    def __exit__(self, *_: object) -> None:
        output = self._process.communicate()[0]  # closes stdin, which ends the probe
        if self._process.returncode:
            raise RuntimeError("the probe failed")
        self.latencies = json.loads(output)


def main(argv: Sequence[str] | None = None) -> None:
    """Send requests until stdin ends, and print the latencies in ms as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.probe", description=__doc__)
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("path", help="must answer 200 and keep the connection open")
    options = parser.parse_args(argv)
    latencies = []
    connection = http.client.HTTPConnection(options.address, timeout=60)
    connection.connect()
    print(flush=True)
    while not select.select([sys.stdin], [], [], PACE)[0]:
        started = time.perf_counter()
        connection.request("GET", options.path)
        response = connection.getresponse()
        response.read()
        latencies.append((time.perf_counter() - started) * 1000)
        if response.status != 200 or response.will_close:
            sys.exit(f"{options.path} answered {response.status}")
    json.dump(latencies, sys.stdout)


if __name__ == "__main__":
    main()
