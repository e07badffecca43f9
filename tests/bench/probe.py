"""How long GET takes on a keep-alive connection, in a process of its own: `python -m tests.bench.probe ADDRESS`."""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time

__all__ = ["Probe"]

PACE = 0.01  # seconds between two requests


class Probe:
    """Asks until it is told to stop, as a context manager; `took` holds the latencies in ms afterwards."""

    def __init__(self, address: str, path: str = "/healthz") -> None:
        self._words = [sys.executable, "-m", "tests.bench.probe", address, path]
        self.took: list[float] = []

    def __enter__(self) -> Probe:
        self._process = subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self._process.stdout.readline()  # it has begun
        return self

    def __exit__(self, *_: object) -> None:
        told, _errors = self._process.communicate()  # closes its stdin
        if self._process.returncode:
            raise RuntimeError("the probe failed")
        self.took = json.loads(told)


def main() -> None:
    """Ask until stdin ends, and print the latencies in ms as JSON."""
    import select

    parser = argparse.ArgumentParser(prog="python -m tests.bench.probe", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("path")
    asked = parser.parse_args()
    took = []
    connection = http.client.HTTPConnection(asked.address, timeout=60)
    connection.connect()
    print(flush=True)
    while not select.select([sys.stdin], [], [], PACE)[0]:
        began = time.perf_counter()
        connection.request("GET", asked.path)
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - began) * 1000)
        if answer.status != 200 or answer.will_close:
            sys.exit(f"{asked.path} answered {answer.status}")
    json.dump(took, sys.stdout)


if __name__ == "__main__":
    main()
