"""Is the engine faster in a thread of the HTTP server or in a process of its own?

A small checkpoint is served in both ways, and both are measured in turns. In a child process the engine does not share
the interpreter with an event loop, but every request and the tokens of every step go through a pipe.
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
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from service.demo_models import tiny
from service.engine import Conversation, Delta, Finish, Sampling, Usage
from tests.bench import chat_load
from tests.bench.chat_load import ChatLoad
from tests.bench.measurement import Measurement, percentile
from tests.bench.probe import Probe

MODES = ("thread", "process")
TURNS = 3
ROUNDS = {1: 12, 16: 6}  # requests of each client, by the number of clients


def load_engine(model: Path) -> Any:
    """Return the warmed up engine of the service, on one thread."""
    import torch

    from service.contract.engine_settings import EngineSettings
    from service.engine.model_engine import Limits, ModelEngine
    from service.model.checkpoint import load as load_checkpoint

    torch.set_num_threads(1)
    settings = EngineSettings()
    engine = ModelEngine(load_checkpoint(model, settings, lambda *_: None), settings, Limits())
    engine.warm_up(lambda *_: None)
    return engine


class ChildEngine:
    """An Engine that runs in a child process."""

    def __init__(self, model: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_end = context.Pipe()
        self._child = context.Process(target=_run_child, args=(model, child_end), daemon=True)
        self._child.start()
        self._pipe.recv()  # warmed up
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Queue[Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def stream(self, messages: Conversation, sampling: Sampling, **more: Any) -> AsyncIterator[Delta | Finish]:
        """See Engine."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._receive, daemon=True).start()
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

    max_new_tokens = 1024

    def check_size(self, messages: Conversation, tools: Any = ()) -> int:
        """Check nothing: the child does."""
        return 0

    @property
    def context_length(self) -> int:
        """Return 0: the benchmark does not use it."""
        return 0

    def usage(self) -> Usage:
        """Return zeros: the benchmark does not use them."""
        return Usage(0, 0, 0, 0)

    def answering(self) -> bool:
        """See Engine."""
        return self._child.is_alive()

    def close(self) -> None:
        """See Engine."""
        self._child.terminate()

    def _receive(self) -> None:
        while True:
            batch = self._pipe.recv()
            assert self._loop
            self._loop.call_soon_threadsafe(self._deliver, batch)

    def _deliver(self, batch: list[tuple[int, Any]]) -> None:
        for number, event in batch:
            if number in self._waiting:
                self._waiting[number].put_nowait(event)


class _PipeLoop:
    """Stands in for the event loop of a Dispatcher: sends the events of one step through the pipe as one message."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def call_soon_threadsafe(self, _deliver: Any, batch: list[tuple[int, Any]]) -> None:
        self._pipe.send(batch)


def _run_child(model: Path, pipe: Connection) -> None:
    """Run the engine in the child process: requests are prepared in its threads, as in a server."""
    engine, loop = load_engine(model), _PipeLoop(pipe)
    pool = ThreadPoolExecutor(2)
    running: dict[int, Any] = {}
    pipe.send("warm")

    def begin(number: int, messages: Any, sampling: Any, more: Any) -> None:
        options = (more.get("thinking"), more.get("tools", ()), more.get("priority", "interactive"))
        running[number] = sequence = engine._prepare(messages, sampling, *options)
        engine._submit(sequence, engine._dispatcher.sender(loop, number))

    while True:
        try:
            number, messages, sampling, more = pipe.recv()
        except EOFError:
            return  # the server has ended
        if messages is not None:
            pool.submit(begin, number, messages, sampling, more)
        elif sequence := running.pop(number, None):
            sequence.cancelled = True


def serve(mode: str, model: Path, port: int) -> None:
    """Serve the whole API until terminated."""
    import uvicorn

    from service.app import create_app
    from service.identity import Identity
    from service.settings import Settings

    engine = load_engine(model) if mode == "thread" else ChildEngine(model)
    with tempfile.TemporaryDirectory() as state:
        settings = Settings(slot="blue", state=Path(state))
        app = create_app(engine, Identity("1.0.0", "blue", 1), settings, serving=lambda: True)
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", loop="asyncio", access_log=False)


@contextmanager
def running_server(mode: str, model: Path) -> Iterator[str]:
    """Run a server process; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    child = subprocess.Popen([sys.executable, "-m", "tests.bench.engine_process", mode, str(model), str(port)])
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
                break
            except httpx.TransportError:
                if child.poll() is not None:
                    raise RuntimeError(f"the server with the engine in a {mode} ended") from None
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait()


def compare() -> None:
    """Measure both modes in turns, and print."""
    with ExitStack() as stack:
        model = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tiny.make(model, seed=1, size="small", dtype="float32")
        addresses = {mode: stack.enter_context(running_server(mode, model)) for mode in MODES}
        measurements: dict[tuple[str, int], list[Measurement]] = {}
        health: dict[str, list[float]] = {mode: [] for mode in MODES}
        for turn, (clients, rounds), mode in itertools.product(range(TURNS + 1), ROUNDS.items(), MODES):
            load = ChatLoad(addresses[mode], "text", clients, rounds, 1000 * turn + clients, 64)
            with Probe(addresses[mode]) as probe:
                measurement = chat_load.run(load)[0]
            if turn:  # the first turn is warm-up
                measurements.setdefault((mode, clients), []).append(measurement)
                health[mode] += probe.latencies if clients > 1 else []
    table = Table("clients", "engine in a", "tok/s", "each turn", "ITL p99, ms", "/healthz p50, ms", "p99")
    for (mode, clients), turns in sorted(measurements.items(), key=lambda item: item[0][1]):
        together = sum(turns[1:], turns[0])
        healthz = [f"{percentile(health[mode], share):.2f}" for share in (50, 99)] if clients > 1 else []
        rates = " ".join(f"{turn.rate:.0f}" for turn in turns)
        gap = f"{percentile(together.gaps, 99):.1f}"
        table.add_row(str(clients), mode, f"{together.rate:.0f}", rates, gap, *healthz)
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare both modes; with arguments, serve in one of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine_process", description=__doc__)
    parser.add_argument("mode", nargs="?", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("model", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("port", nargs="?", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.mode:
        serve(options.mode, options.model, options.port)
    else:
        compare()


if __name__ == "__main__":
    main()
