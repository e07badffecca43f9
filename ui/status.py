"""What glmctl publishes, read once for all sessions: the state of the host, its last ten minutes, and past rollouts."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["TICK", "WINDOW", "Document", "Point", "Recent", "Status", "StatusReader", "controller"]

WINDOW = 600.0  # seconds that are kept
TICK = 5.0  # seconds between two points
_POLL = 1.0  # seconds after which a silent glmctl is looked at again
_PAUSE = 2.0  # seconds before glmctl is started again
_HISTORY_TIMEOUT = 60.0  # seconds
_LONGEST_LINE = 8 << 20  # bytes; a document has a few thousand
_LONGEST_MESSAGE = 500  # characters

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One slot at one moment."""

    at: float
    """Seconds since the epoch, a multiple of TICK."""
    slot: str
    version: str
    share: float
    requests_per_s: float | None
    p95: float | None
    ttft_p95: float | None
    errors: float | None


class Recent:
    """The points of the last ten minutes. A document holds until the next one: glmctl prints one for each change."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque()
        self._last: Document | None = None
        self._next = 0.0

    def update(self, document: Document | None, now: float) -> None:
        """Take a document from now on; None: the state is unknown."""
        self._advance(now)
        self._last = document

    def points(self, now: float) -> list[Point]:
        """Return the points up to now, oldest first."""
        self._advance(now)
        return list(self._points)

    def _advance(self, now: float) -> None:
        """Add the points between the last one and `now`."""
        tick = max(self._next, (now - WINDOW) // TICK * TICK)
        while tick <= now:
            if self._last is not None:
                self._points += _points(self._last, tick)
            tick += TICK
        self._next = tick
        while self._points and self._points[0].at < now - WINDOW:
            self._points.popleft()


@dataclass(frozen=True)
class Status:
    """What is known now."""

    document: Document | None = None
    """What `glmctl status --json` prints; None while it is unknown."""
    error: str | None = None
    """Why it is unknown: the message of glmctl; None while glmctl is starting."""
    rollouts: tuple[Document, ...] | None = None
    """The records of `glmctl history --json`, oldest first; None before they were read."""


class StatusReader:
    """Runs `glmctl status --watch --json`, and `glmctl history --json` whenever a rollout has begun or ended.

    It starts when it is first asked, and ends when it was not asked for WINDOW seconds. Thread-safe.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._lock = threading.Lock()
        self._recent = Recent()
        self._status = Status()
        self._seen: tuple[Any, ...] | None = None  # the last rollout when the history was read
        self._asked_at = 0.0  # monotonic
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def status(self) -> Status:
        """Return what is known now; does not block."""
        with self._lock:
            self._asked_at = time.monotonic()
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="status", daemon=True)
                self._thread.start()
            return self._status

    def points(self, now: float) -> list[Point]:
        """Return the points of the ten minutes before `now`, seconds since the epoch."""
        with self._lock:
            return self._recent.points(now)

    def close(self) -> None:
        """End glmctl and the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def _is_wanted(self) -> bool:
        return not self._closed.is_set() and time.monotonic() - self._asked_at < WINDOW

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._is_wanted:
                    self._thread, self._status = None, Status(rollouts=self._status.rollouts)
                    return
            error = self._watch()
            if error is not None:
                self._publish(None, error)
                self._closed.wait(_PAUSE)

    def _watch(self) -> str | None:
        """Read documents until glmctl ends, and return why it did; None if nobody wants more of them."""
        with tempfile.TemporaryFile() as messages:
            try:
                process = subprocess.Popen(
                    [*self._command, "status", "--watch", "--json"], stdout=subprocess.PIPE, stderr=messages
                )
            except OSError as error:
                return f"{self._command[0]}: {error.strerror}"
            assert process.stdout is not None
            with process:
                try:
                    for line in self._lines(process.stdout):
                        with suppress(ValueError):
                            self._publish(json.loads(line), None)
                    if not self._is_wanted:
                        return None
                finally:
                    process.kill()
            messages.seek(0)
            text = messages.read().decode(errors="replace").strip()
            return text[-_LONGEST_MESSAGE:] or f"glmctl ended with {process.returncode}"

    def _lines(self, stream: IO[bytes]) -> Iterator[bytes]:
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while self._is_wanted and len(rest) < _LONGEST_LINE:
                if not selector.select(_POLL):
                    continue
                data = os.read(stream.fileno(), 1 << 16)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                yield from lines

    def _publish(self, document: Document | None, error: str | None) -> None:
        rollouts = self._status.rollouts
        if document is not None:
            rollout = document["rollout"] or {}
            seen = (rollout.get("id"), rollout.get("outcome"))
            if seen != self._seen and (found := self._history()) is not None:
                rollouts, self._seen = found, seen
        with self._lock:
            self._status = Status(document, error, rollouts)
            self._recent.update(document, time.time())

    def _history(self) -> tuple[Document, ...] | None:
        """Return all records; None if glmctl cannot be run."""
        try:
            done = subprocess.run(
                [*self._command, "history", "--json"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_HISTORY_TIMEOUT,
                check=True,
            )
            return tuple(json.loads(done.stdout)["rollouts"])
        except (OSError, subprocess.SubprocessError, ValueError):
            return None


def controller() -> list[str]:
    """Return the beginning of a glmctl command, from GLM_CONTROLLER; else the glmctl beside this interpreter."""
    given = os.environ.get("GLM_CONTROLLER", "").strip()
    return shlex.split(given) if given else [str(Path(sys.executable).with_name("glmctl"))]


def _points(document: Document, at: float) -> Iterator[Point]:
    for name, slot in document["slots"].items():
        if slot["version"]:
            figures = (slot[key] for key in ("share", "requests_per_s", "p95", "ttft_p95", "errors"))
            yield Point(at, name, slot["version"], *figures)
