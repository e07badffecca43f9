"""Processes of its own for native code, as the worker uses them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from fcntl import F_SETPIPE_SZ, fcntl
from mmap import mmap
from queue import LifoQueue
from select import POLLHUP, POLLIN, poll
from typing import IO

from service.isolation.child import DONE, FAILED, HEAD, REFUSED, REPLY

__all__ = ["Died", "IsolatedProcesses", "Refusal"]

PIPE = 1 << 20  # bytes of a pipe's buffer, the most that an unprivileged process may ask for
MAPPED = 1 << 20  # bytes of a reply from which on it is read into a mapping
GRACE = 20  # times the limit of processor time after which a process counts as hung, on a machine busy with other work

log = logging.getLogger("service")


class Died(Exception):
    """The process died of the request, or was ended because of it; the text says why, for the client."""


class Refusal(ValueError):
    """The function has refused the request with this text."""


class IsolatedProcesses:
    """Up to `count` processes that run `begin` of a module; see `child.py`. Calls block, and may come from any thread.

    `setup` makes the argument of `begin`. One request may use `memory` bytes beyond what the process has before the
    first, and `seconds` of processor time, up to one more, since the kernel counts whole ones.
    """

    def __init__(self, module: str, setup: Callable[[], bytes], *, count: int, memory: int, seconds: int) -> None:
        self._module = module
        self._setup = setup
        self._memory = memory
        self._seconds = seconds
        # The last in is the first out, so that a process is started only when all that exist are busy.
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(count):
            self._idle.put(None)
        self._started: set[_Process] = set()
        weakref.finalize(self, _end, self._started)

    def call(self, *request: bytes | bytearray) -> memoryview:
        """Return the function's answer to a request, which is sent in pieces; raises Refusal, Died and OSError."""
        process = self._idle.get()
        try:
            if process is None or not process.alive:  # by a signal from outside
                process = self._start(process)
            return process.call(request)
        except Died as error:
            log.warning("an isolated process ended (%s): %s", self._module, error)
            if process is not None:
                self._started.discard(process)
            process = None
            raise
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes."""
        _end(self._started)

    def _start(self, before: _Process | None) -> _Process:
        if before is not None:
            before.end()
            self._started.discard(before)
        process = _Process([self._module, str(self._memory), str(self._seconds)], self._seconds)
        self._started.add(process)
        process.send((self._setup(),))
        return process


class _Process:
    """One process: its pipes, and what it died of."""

    def __init__(self, arguments: list[str], seconds: int) -> None:
        self._seconds = seconds
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "service.isolation.child", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        for pipe in (self._requests, self._replies):
            try:
                fcntl(pipe, F_SETPIPE_SZ, PIPE)
            except OSError:  # the user's pipes have reached their limit
                break

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def _requests(self) -> IO[bytes]:
        assert self._popen.stdin
        return self._popen.stdin

    @property
    def _replies(self) -> IO[bytes]:
        assert self._popen.stdout
        return self._popen.stdout

    def send(self, request: Iterable[bytes | bytearray]) -> None:
        pieces = [memoryview(piece) for piece in request]
        try:
            for piece in (memoryview(HEAD.pack(sum(map(len, pieces)))), *pieces):
                rest = piece
                while rest:
                    rest = rest[os.write(self._requests.fileno(), rest) :]
        except BrokenPipeError:
            raise self._died() from None

    def call(self, request: Iterable[bytes | bytearray]) -> memoryview:
        self.send(request)
        self._await_reply()
        status, length = REPLY.unpack(self._read(REPLY.size))
        reply = self._read(length)
        if status == FAILED:
            self.end()  # what the failed attempt has allocated is not given back otherwise
            raise Died(bytes(reply).decode())
        if status == REFUSED:
            raise Refusal(bytes(reply).decode())
        assert status == DONE
        return reply

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._requests.close()
        self._replies.close()

    def _await_reply(self) -> None:
        poller = poll()
        poller.register(self._replies, POLLIN | POLLHUP)
        deadline = time.monotonic() + GRACE * (1 + self._seconds)
        while (left := deadline - time.monotonic()) > 0:
            if poller.poll(left * 1000):
                return
        self.end()
        raise Died("it takes too long")

    def _read(self, length: int) -> memoryview:
        # A large bytearray would be filled with zeros first, in which time no other thread runs.
        view, at = memoryview(bytearray(length) if length < MAPPED else mmap(-1, length)), 0
        while at < length:
            count = os.readv(self._replies.fileno(), [view[at:]])
            if not count:
                raise self._died()
            at += count
        return view

    def _died(self) -> Died:
        code = self._popen.wait()
        self.end()
        if -code == signal.SIGXCPU:
            return Died(f"it takes more than {self._seconds} s of processor time")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Died(f"the process that worked on it crashed ({name})")


def _end(processes: set[_Process]) -> None:
    while processes:
        processes.pop().end()
