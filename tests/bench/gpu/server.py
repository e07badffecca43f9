"""One server, started by hand: from the start to READY, then tokens a second over HTTP. Needs no systemd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.errors import GlmError
from service.contract.generations import Generation, current
from service.contract.slots import Slots, release_target
from tests.bench.gpu.figures import CLIENTS, FIGURES, LOAD_PARTS
from tests.bench.gpu.load import chats, mixed_load
from tests.bench.gpu.machine import CODE
from tests.bench.gpu.releases import VERSIONS, Plan
from tests.bench.gpu.report import Report
from tests.bench.measurement import percentile

__all__ = ["measure"]

_ROUNDS, _MIXED_ROUNDS = 6, 40
_DEADLINE = 600  # seconds from the start to READY
_SLOT = "blue"


def measure(plan: Plan, report: Report) -> None:
    """Start the server on the first release, and load it."""
    with tempfile.TemporaryDirectory(prefix="glm-bench-") as runtime, _server(plan, Path(runtime), report) as address:
        first = 0
        for clients in CLIENTS:
            rounds = 1 if plan.quick else _ROUNDS
            with report.step(FIGURES[f"http.rate_{clients}"].what):
                if not plan.quick:
                    chats(address, clients, rounds=1, tokens=64, first=first)  # captures CUDA graphs
                first += clients
                measurement = chats(address, clients, rounds=rounds, tokens=64, first=first)
                first += clients * rounds
            report.figure(f"http.rate_{clients}", measurement.rate)
        with (
            report.step("answers of 8 tokens beside the mixed load"),
            mixed_load(address, Path(runtime) / "load.json", before=2),
        ):
            rounds = 4 if plan.quick else _MIXED_ROUNDS
            measurement = chats(address, 1, rounds=rounds, tokens=8, first=first)
        report.figure("http.mixed_p50", percentile(measurement.first, 50))


@contextmanager
def _server(plan: Plan, runtime: Path, report: Report) -> Iterator[str]:
    """Run a server that is ready; yields its address. Raises GlmError if it does not become ready."""
    plan.clear_slots()
    slots = Slots(plan.root)
    slots.point(_SLOT, release_target(VERSIONS[0]))
    slots.go_live(_SLOT)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = {"ROOT": plan.root, "RUNTIME": runtime, "STATE": runtime / "batches", "KEYS": runtime / "keys",
                "SLOT": _SLOT, "BIND": address}  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GLM_", "NOTIFY_", "LISTEN_"))}
    env |= {f"GLM_{name}": str(value) for name, value in settings.items()}
    log = plan.directory / "server.log"
    started = time.monotonic()
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "service"], env=env, cwd=CODE, stdout=output, stderr=output, start_new_session=True
        )
    try:
        with report.step("start of the server"):
            generation = _await_ready(server, runtime, log)
        report.figure("http.ready", time.monotonic() - started)
        for part in LOAD_PARTS:
            report.figure(f"http.ready_{part.replace(' ', '_')}", generation.load.get(part, 0.0))
        yield address
    finally:
        _stop(server)
        plan.clear_slots()


def _await_ready(server: subprocess.Popen[bytes], runtime: Path, log: Path) -> Generation:
    deadline = time.monotonic() + _DEADLINE
    while True:
        generation = current(runtime, _SLOT)
        if generation and generation.ready:
            return generation
        if server.poll() is not None or time.monotonic() > deadline:
            last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
            raise GlmError(f"the server did not become ready: {''.join(last) or 'no message'}", hint=f"see {log}")
        time.sleep(0.02)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
