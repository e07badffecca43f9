"""Thread or process: the engine in a thread of the HTTP server's process, beside the same one in a child of its own.

`python -m tests.bench.hosting` serves a small checkpoint both ways and asks in turns. In the child there is no event
loop to share the interpreter with, but every request and every step's tokens go through a pipe.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from service.demo_models import tiny
from service.engine import Delta, Finish, Sampling, Usage
from tests.bench.clients import Load, load
from tests.bench.figures import Figures, percentile
from tests.bench.probe import Probe

WAYS = ("thread", "process")
TURNS = 3
ROUNDS = {1: 12, 16: 6}


def engine(model: Path) -> Any:
    """The service's own engine, computing on one core."""
    import torch

    from service.engine.model_engine import Limits, ModelEngine
    from service.model.checkpoint import load as load_checkpoint
    from service.model.release import EngineSettings

    torch.set_num_threads(1)
    settings = EngineSettings()
    made = ModelEngine(load_checkpoint(model, settings, lambda *_: None), settings, Limits())
    made.warm_up(lambda *_: None)
    return made


class ChildEngine:
    """An Engine whose work is done in a child process."""

    def __init__(self, model: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_work, args=(model, theirs), daemon=True)
        self._child.start()
        self._pipe.recv()  # it is warm
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Queue[Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def stream(
        self, messages: list[dict[str, Any]], sampling: Sampling, **more: Any
    ) -> AsyncIterator[Delta | Finish]:
        """See Engine."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._hear, daemon=True).start()
        number, events = next(self._numbers), asyncio.Queue[Any]()
        self._waiting[number] = events
        self._pipe.send((number, messages, sampling, more))
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Finish):
                    return
        finally:
            del self._waiting[number]
            self._pipe.send((number, None, None, None))

    def usage(self) -> Usage:
        """Nothing here asks."""
        return Usage(0, 0, 0, 0)

    def answering(self) -> bool:
        """See Engine."""
        return self._child.is_alive()

    def close(self) -> None:
        """See Engine."""
        self._child.terminate()

    def _hear(self) -> None:
        while True:
            batch = self._pipe.recv()
            assert self._loop
            self._loop.call_soon_threadsafe(self._deliver, batch)

    def _deliver(self, batch: list[tuple[int, Any]]) -> None:
        for number, event in batch:
            if number in self._waiting:
                self._waiting[number].put_nowait(event)


class _Wire:
    """Replaces the event loop of a dispatcher: the events of one step are sent through the pipe as one message."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def call_soon_threadsafe(self, _deliver: Any, batch: list[tuple[int, Any]]) -> None:
        self._pipe.send(batch)


def _work(model: Path, pipe: Connection) -> None:
    """Run in the child: prepare in the engine's threads as it does in a server, step in its own."""
    made, wire = engine(model), _Wire(pipe)
    running: dict[int, Any] = {}
    pipe.send("warm")

    def begin(number: int, messages: Any, sampling: Any, more: Any) -> None:
        words = (more.get("thinking"), more.get("tools", ()), more.get("priority", "interactive"))
        running[number] = sequence = made._prepare(messages, sampling, *words)
        made._submit(sequence, made._dispatcher.sender(wire, number))

    while True:
        try:
            number, messages, sampling, more = pipe.recv()
        except EOFError:
            return  # whoever asked is gone
        if messages is not None:
            made._prepare_pool.submit(begin, number, messages, sampling, more)
        elif sequence := running.pop(number, None):
            sequence.cancelled = True


def serve(way: str, model: Path, port: int) -> None:
    """Serve the whole API until killed."""
    import uvicorn

    from service.app import create_app
    from service.identity import Identity
    from service.settings import Settings

    made = engine(model) if way == "thread" else ChildEngine(model)
    with tempfile.TemporaryDirectory() as state:
        settings = Settings(slot="blue", state=Path(state))
        app = create_app(made, Identity("1.0.0", "blue", 1), settings, serving=lambda: True)
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", loop="asyncio", access_log=False)


@contextmanager
def served(way: str, model: Path) -> Iterator[str]:
    """A server of its own; the address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    child = subprocess.Popen([sys.executable, "-m", "tests.bench.hosting", way, str(model), str(port)])
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
                break
            except httpx.TransportError:
                if child.poll() is not None:
                    raise RuntimeError(f"the server with the engine in a {way} ended") from None
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait()


def compare() -> None:
    """Measure both ways in turns, and print."""
    with ExitStack() as stack:
        model = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tiny.make(model, seed=1, size="small", dtype="float32")
        addresses = {way: stack.enter_context(served(way, model)) for way in WAYS}
        figures: dict[tuple[str, int], list[Figures]] = {}
        health: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn, (clients, rounds), way in itertools.product(range(TURNS + 1), ROUNDS.items(), WAYS):
            what = Load(addresses[way], "text", clients, rounds, 1000 * turn + clients, 64)
            with Probe(addresses[way]) as probe:
                found = load(what)[0]
            if turn:  # the first is to make both warm
                figures.setdefault((way, clients), []).append(found)
                health[way] += probe.took if clients > 1 else []
    table = Table("clients", "engine in a", "tok/s", "each turn", "ITL p99, ms", "/healthz p50, ms", "p99")
    for (way, clients), turns in sorted(figures.items(), key=lambda item: item[0][1]):
        together = sum(turns[1:], turns[0])
        took = [f"{percentile(health[way], share):.2f}" for share in (50, 99)] if clients > 1 else []
        each = " ".join(f"{one.rate:.0f}" for one in turns)
        table.add_row(str(clients), way, f"{together.rate:.0f}", each, f"{percentile(together.gaps, 99):.1f}", *took)
    Console().print(table)


def main() -> None:
    """Compare; with arguments, serve one way."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hosting", description=__doc__)
    parser.add_argument("way", nargs="?", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("model", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("port", nargs="?", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        serve(asked.way, asked.model, asked.port)
    else:
        compare()


if __name__ == "__main__":
    main()
