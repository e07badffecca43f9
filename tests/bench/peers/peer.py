"""A way to replace one version by another, as the benchmark of switches uses it, and the processes that it starts."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from tests.bench.peers.application import RELEASE
from tests.box import CODE

__all__ = ["VERSIONS", "Application", "Missing", "Peer", "Process", "answering", "await_version", "unused_address"]

VERSIONS = ("1.0.0", "1.1.0")
START_SECONDS = 90


class Missing(Exception):
    """The peer cannot be measured on this machine; the message says what to do."""


class Peer(ABC):
    """A server in a `with` block, whose version is replaced by the other one with `prepare`, `switch` and `finish`."""

    name: str
    how: str
    """What a switch does, in a few words."""

    def __init__(self, releases: Path, scratch: Path) -> None:
        """`releases` holds a directory for each of VERSIONS; `scratch` is an empty directory."""
        self.releases = releases
        self.scratch = scratch
        self.address = unused_address()
        self.live = 0
        """The index in VERSIONS of the version that answers."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            self.start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def next_version(self) -> str:
        """The version that the next switch makes live."""
        return VERSIONS[1 - self.live]

    @abstractmethod
    def versions(self) -> str:
        """Return the names and versions of the programs; raises Missing."""

    @abstractmethod
    def start(self, stack: ExitStack) -> None:
        """Serve VERSIONS[0] at `address`; what was started is ended by `stack`."""

    def prepare(self) -> None:  # noqa: B027 - not every peer has something to do
        """Do what can be done before any client meets the new version."""

    @abstractmethod
    def switch(self) -> None:
        """Send new requests to the new version; it need not wait for that."""

    def finish(self) -> None:  # noqa: B027
        """Take the old version away, once the kept connections are answered by the new one."""

    def release(self, version: str) -> Path:
        """Return the release directory of a version."""
        return self.releases / version


class Process:
    """A program in a process of its own, whose output goes to a file."""

    def __init__(self, argv: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                argv, cwd=CODE, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=_environment() | (env or {})
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, seconds: float) -> None:
        """Wait for its end; after that time it is killed."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """Terminate it, and kill it after 15 s."""
        if self.is_running:
            self._process.terminate()
        self.wait(15)


class Application(Process):
    """A version of the application in plain Uvicorn, on the event loop that the service has too."""

    def __init__(self, release: Path, scratch: Path) -> None:
        self.address = unused_address()
        host, port = self.address.split(":")
        argv = [
            sys.executable, "-m", "uvicorn", "tests.bench.peers.application:create", "--factory", "--host", host,
            "--port", port, "--http", "httptools", "--loop", "asyncio", "--ws", "none", "--no-access-log",
            "--no-server-header", "--log-level", "warning", "--timeout-keep-alive", "75",
        ]  # fmt: skip
        super().__init__(argv, scratch / f"uvicorn-{port}.log", {RELEASE: str(release)})

    def await_ready(self) -> None:
        """Wait until it answers; raises RuntimeError."""
        await_condition(lambda: answering(self.address) is not None, self)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("GLM_", "LISTEN_", "NOTIFY_"))}


def unused_address() -> str:
    """Return HOST:PORT on loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        host, port = unused.getsockname()
    return f"{host}:{port}"


def answering(address: str) -> str | None:
    """Return the version that answers a new connection; None if there is no answer."""
    try:
        response = httpx.get(f"http://{address}/version", trust_env=False, timeout=5)
    except httpx.TransportError:
        return None
    return response.headers.get("x-model-version") if response.status_code == 200 else None


def await_version(address: str, version: str, process: Process) -> None:
    """Wait until the version answers new connections; raises RuntimeError."""
    await_condition(lambda: answering(address) == version, process)


def await_condition(condition: Callable[[], bool], process: Process) -> None:
    """Wait until it holds; raises RuntimeError when the process has ended, or after 90 s."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if not process.is_running or time.monotonic() > deadline:
            raise RuntimeError(f"no answer: {process.log.read_text(errors='replace')[-800:]}")
        time.sleep(0.02)


def program_version(program: str, argument: str, *, package: str | None = None) -> str:
    """Return the first line of what a program prints with that argument; raises Missing."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise Missing(f"{program} is not installed: apt-get install {package or program}")
    done = subprocess.run([path, argument], capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()[0].strip()
