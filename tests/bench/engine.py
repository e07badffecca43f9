"""How fast is the engine over HTTP, compared with transformers' generate and `transformers serve`?

All systems use one checkpoint and take turns, so that the noise of a shared machine affects all of them. Compare the
ratios; absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from deploy.systemd.sandbox import Sandbox
from service.demo_models import tiny
from tests.bench import chat_load, tables
from tests.bench.chat_load import Answer, ChatLoad
from tests.bench.measurement import Measurement
from tests.bench.output import Output
from tests.bench.probe import Probe
from tests.bench.prompts import Kind
from tests.bench.results import PADDED, SEQUENTIAL, SERVE, SERVICE, Results
from tests.bench.transformers_generate import Generate, with_queue
from tests.bench.transformers_serve import TransformersServe
from tests.box import Box

TOKENS = 64  # of each answer
KINDS: tuple[Kind, ...] = get_args(Kind)
ROUNDS = {1: 6, 4: 4, 16: 3, 64: 2}  # requests of each client, and padded batches, by the number of clients
SERVE_ROUNDS = {1: 6, 4: 2, 16: 1, 64: 1}  # fewer for `transformers serve`, which answers one request at a time
TURNS = {1: 6, 4: 2, 16: 4, 64: 1}  # by the number of clients: most where there is a target


@dataclass
class Bench:
    """One run of all systems; no prompt is used twice, except to compare answers."""

    service: str
    """Address of this service, HOST:PORT."""
    serve: str
    """Address of `transformers serve`."""
    generate: Generate
    show_status: Callable[[str], None]
    results: Results = field(default_factory=Results)
    _next_prompt: Iterator[int] = field(default_factory=lambda: count(0, 1024))

    def compare_answers(self) -> None:
        """Send the same prompts to all systems, and compare the answers; this also warms them up."""
        for kind in KINDS:
            self.show_status(f"comparing answers, {kind}")
            first = next(self._next_prompt)
            _, expected = self.generate.sequential(kind, range(first, first + 8))
            _, padded = self.generate.padded(kind, range(first, first + 8))
            self.results.compare(PADDED, expected, padded)
            for system, address in ((SERVICE, self.service), (SERVE, self.serve)):
                _, answers = self._load(address, kind, clients=4, rounds=2, first=first)
                self.results.compare(system, expected, answers)

    def throughput(self, kind: Kind, clients: int) -> None:
        """Measure all systems once with this number of concurrent clients."""
        self.show_status(f"{clients} clients, {kind}")
        rounds = ROUNDS[clients]
        single = self.generate.sequential(kind, self._prompts(6))[0]
        self.results.add(SEQUENTIAL, kind, clients, with_queue(single, clients))
        self.results.add(SERVICE, kind, clients, self._load(self.service, kind, clients, rounds)[0])
        for _ in range(rounds):
            self.results.add(PADDED, kind, clients, self.generate.padded(kind, self._prompts(clients))[0])
        self.results.add(SERVE, kind, clients, self._load(self.serve, kind, clients, SERVE_ROUNDS[clients])[0])

    def streaming(self, clients: int) -> None:
        """Measure this service with streamed and with whole answers."""
        self.show_status(f"streamed and whole answers, {clients} clients")
        for stream in (True, False):
            measurement = self._load(self.service, "text", clients, ROUNDS[clients], stream=stream)[0]
            self.results.add("streamed" if stream else "whole", "text", clients, measurement)

    def responsiveness(self, kind: Kind, clients: int, rounds: int) -> None:
        """Measure GET /healthz of this service while it is idle, and during concurrent streams."""
        self.show_status(f"/healthz during {clients} streams, {kind}")
        with Probe(self.service) as probe:
            time.sleep(2)
        self.results.healthz.setdefault("idle", []).extend(probe.latencies)
        with Probe(self.service) as probe:
            measurement = self._load(self.service, kind, clients, rounds)[0]
        self.results.add("this service, with the probe", kind, clients, measurement)
        self.results.healthz.setdefault(f"{clients} {kind} streams", []).extend(probe.latencies)

    def _load(
        self, address: str, kind: Kind, clients: int, rounds: int, *, stream: bool = True, first: int | None = None
    ) -> tuple[Measurement, list[Answer]]:
        first = next(self._next_prompt) if first is None else first
        return chat_load.run(ChatLoad(address, kind, clients, rounds, first, TOKENS, stream))

    def _prompts(self, number: int) -> range:
        first = next(self._next_prompt)
        return range(first, first + number)


@contextmanager
def running_service(checkpoint: Path, threads: int) -> Iterator[str]:
    """Run this service under systemd with the checkpoint live; yields its address."""
    with Sandbox() as sandbox:
        box = Box(sandbox)
        box.configure(threads=threads)
        box.glmctl("release", "add", str(checkpoint), "--version", "1.0.0")
        box.glmctl("deploy", "1.0.0")
        yield box.listen


def measure(bench: Bench, *, quick: bool) -> None:
    """Measure everything in short turns, because the speed of a shared machine changes from one second to the next."""
    bench.compare_answers()
    for turn in range(2 if quick else max(TURNS.values())):
        for clients in (1, 16) if quick else [number for number, turns in TURNS.items() if turn < turns]:
            for kind in KINDS:
                bench.throughput(kind, clients)
    for _ in range(1 if quick else 2):
        for clients in (1, 16):
            bench.streaming(clients)
        for kind in KINDS:
            bench.responsiveness(kind, 16, rounds=4 if quick else 8)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 and 16 clients only, two turns; about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="compute threads of each system (default: 1; on two cores, two threads are no faster with a small model, "
        "and much slower while other processes run)",
    )
    options = parser.parse_args(argv)
    console = Console()
    started = time.monotonic()
    with ExitStack() as stack:
        status = stack.enter_context(console.status("creating a checkpoint"))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model, threads = scratch / "model", options.threads
        made: dict[str, Any] = tiny.make(model, seed=1, size="small", dtype="float32")
        generate = Generate(model, tokens=TOKENS, threads=threads)
        status.update("starting the servers")
        serve = stack.enter_context(TransformersServe(model, scratch / "serve.log", threads=threads))
        service = stack.enter_context(running_service(model, threads))
        bench = Bench(service, serve.address, generate, status.update)
        measure(bench, quick=options.quick)
    console.print(
        f"small model: hidden 256, 4 layers, {made['parameters'] / 1e6:.1f} M parameters, float32; "
        f"{threads} compute thread(s) each; {TOKENS} new tokens, greedy; "
        f"{time.monotonic() - started:.0f} s in total"
    )
    tables.show(Output("engine"), bench.results)
    if options.json:
        options.json.write_text(json.dumps(made | bench.results.document(), indent=2) + "\n")


if __name__ == "__main__":
    main()
