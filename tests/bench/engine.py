"""`make bench`: the engine over HTTP beside transformers' own ways to answer, on one checkpoint, in one run.

Contenders take turns within each situation, so that a noisy minute meets them all. Absolute figures depend on the
machine; the ratios are what to look at.
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
from tests.bench import tables
from tests.bench.baselines import Generate, queued
from tests.bench.clients import Answer, Load, load
from tests.bench.figures import Figures
from tests.bench.probe import Probe
from tests.bench.questions import Kind
from tests.bench.results import OURS, PADDED, SEQUENTIAL, SERVE, Results
from tests.bench.serve import TransformersServe
from tests.box import Box

TOKENS = 64
KINDS: tuple[Kind, ...] = get_args(Kind)
ROUNDS = {1: 6, 4: 4, 16: 3, 64: 2}  # questions a client asks, by the number of clients; so many batches, too
ONE_BY_ONE = {1: 6, 4: 2, 16: 1, 64: 1}  # the same for `transformers serve`, which takes them one at a time
TURNS = {1: 6, 4: 2, 16: 4, 64: 1}  # by the number of clients: most where there is something to reach


@dataclass
class Bench:
    """One run: two servers, `generate` in this process, and questions of which none is asked twice."""

    ours: str
    serve: str
    generate: Generate
    tell: Callable[[str], None]
    results: Results = field(default_factory=Results)
    _next: Iterator[int] = field(default_factory=lambda: count(0, 1024))

    def compare_answers(self) -> None:
        """Ask all contenders the same; it also makes them warm."""
        for kind in KINDS:
            self.tell(f"the same answers? {kind}")
            first = next(self._next)
            _, expected = self.generate.sequential(kind, range(first, first + 8))
            _, padded = self.generate.padded(kind, range(first, first + 8))
            self.results.compare(PADDED, expected, padded)
            for name, address in ((OURS, self.ours), (SERVE, self.serve)):
                _, answers = self._load(address, kind, clients=4, rounds=2, first=first)
                self.results.compare(name, expected, answers)

    def throughput(self, kind: Kind, clients: int) -> None:
        """Measure all contenders once with so many concurrent clients."""
        self.tell(f"{clients} clients, {kind}")
        rounds = ROUNDS[clients]
        one = self.generate.sequential(kind, self._questions(6))[0]
        self.results.add(SEQUENTIAL, kind, clients, queued(one, clients))
        self.results.add(OURS, kind, clients, self._load(self.ours, kind, clients, rounds)[0])
        for _ in range(rounds):
            self.results.add(PADDED, kind, clients, self.generate.padded(kind, self._questions(clients))[0])
        self.results.add(SERVE, kind, clients, self._load(self.serve, kind, clients, ONE_BY_ONE[clients])[0])

    def streaming(self, clients: int) -> None:
        """Measure what it costs to stream, once each way."""
        self.tell(f"streaming or not, {clients} clients")
        for stream in (True, False):
            figures = self._load(self.ours, "text", clients, ROUNDS[clients], stream=stream)[0]
            self.results.add("streamed" if stream else "whole", "text", clients, figures)

    def responsiveness(self, kind: Kind, clients: int, rounds: int) -> None:
        """Measure GET /healthz in peace and beside so many streams."""
        self.tell(f"/healthz beside {clients} streams, {kind}")
        with Probe(self.ours) as probe:
            time.sleep(2)
        self.results.healthz.setdefault("idle", []).extend(probe.took)
        with Probe(self.ours) as probe:
            figures = self._load(self.ours, kind, clients, rounds)[0]
        self.results.add("ours, beside the probe", kind, clients, figures)
        self.results.healthz.setdefault(f"{clients} {kind} streams", []).extend(probe.took)

    def _load(
        self, address: str, kind: Kind, clients: int, rounds: int, *, stream: bool = True, first: int | None = None
    ) -> tuple[Figures, list[Answer]]:
        first = next(self._next) if first is None else first
        return load(Load(address, kind, clients, rounds, first, TOKENS, stream))

    def _questions(self, number: int) -> range:
        first = next(self._next)
        return range(first, first + number)


@contextmanager
def our_server(checkpoint: Path, threads: int) -> Iterator[str]:
    """The whole server as a host runs it: Gunicorn and SlotWorker under systemd, the checkpoint live."""
    with Sandbox() as sandbox:
        box = Box(sandbox)
        box.configure(threads=threads)
        box.glmctl("release", "add", str(checkpoint), "--version", "1.0.0")
        box.glmctl("deploy", "1.0.0")
        yield box.listen


def measure(bench: Bench, *, quick: bool) -> None:
    """Go through all situations, in short turns: the speed of a shared machine changes from one second to the next."""
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


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 and 16 clients only, twice: a good minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="on which every contender computes (default: 1: on two cores, two threads that wait for each other at "
        "every layer are no faster with a small model, and far slower as soon as anybody else has work)",
    )
    asked = parser.parse_args(words)
    console = Console()
    began = time.monotonic()
    with ExitStack() as stack:
        status = stack.enter_context(console.status("making a checkpoint"))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made: dict[str, Any] = tiny.make(scratch / "model", seed=1, size="small", dtype="float32")
        generate = Generate(scratch / "model", tokens=TOKENS, threads=asked.threads)
        status.update("starting the servers")
        serve = stack.enter_context(TransformersServe(scratch / "model", scratch / "serve.log", threads=asked.threads))
        ours = stack.enter_context(our_server(scratch / "model", asked.threads))
        bench = Bench(ours, serve.address, generate, status.update)
        measure(bench, quick=asked.quick)
    console.print(
        f"small model: hidden 256, 4 layers, {made['parameters'] / 1e6:.1f} M parameters, float32; "
        f"{asked.threads} thread(s) to compute for each; {TOKENS} new tokens, greedy; "
        f"{time.monotonic() - began:.0f} s in all"
    )
    for table in tables.all_of(bench.results):
        console.print(table)
    if asked.json:
        asked.json.write_text(json.dumps(made | bench.results.document(), indent=2) + "\n")


if __name__ == "__main__":
    main()
