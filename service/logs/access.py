"""The access log: one line for each request that has ended, at a bounded rate, written by a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from queue import Full, Queue
from typing import NamedTuple

from service.contract.network import network_of
from service.contract.samples import BROKEN_OFF, CLIENT_GONE
from service.refusals import MAX_PATH, MAX_REASON, printable, word

__all__ = ["AccessLog", "Entry"]

WINDOW = 1.0  # seconds
PROBES = frozenset({"/healthz", "/health", "/readyz", "/metrics"})
"""Paths that are asked all the time; they are logged if they fail."""
INTERNAL = "internal"
"""In place of the client's address, for what is asked on the slot's internal socket."""

_CLOSE = 1.0  # seconds for what is left
_REASONS = {CLIENT_GONE: "the client has disconnected", BROKEN_OFF: "the answer was broken off"}

log = logging.getLogger("service.access")


class Entry(NamedTuple):
    """A request and its answer. `first` are the seconds to the first piece of a streamed answer."""

    method: str
    path: str
    status: int
    seconds: float
    client: str
    version: str
    request_id: str
    first: float | None = None
    tokens: tuple[int, int] | None = None  # of prompt and output
    reason: str | None = None


class AccessLog:
    """Logs requests with their fields. Its methods must be called in one thread; none of them waits.

    `share`: the part of the requests that are logged; of those that failed all are, unless it is 0. At most `rate`
    lines a second are written, half of them of one address, so that it does not hide the others; what was left out is
    counted in a line. Lines have no queries, headers or bodies, which may hold secrets, and printable ASCII alone.
    """

    def __init__(self, share: float, rate: int) -> None:
        self._share, self._rate = share, rate
        self._window = 0.0
        self._logged: Counter[str] = Counter()  # in this window, by network
        self._left_out = 0
        self._queue: Queue[Entry | int | None] = Queue(2 * rate)
        self._thread: threading.Thread | None = None

    @property
    def is_on(self) -> bool:
        """Whether requests that fail get a line."""
        return self._share > 0

    def add(self, entry: Entry) -> None:
        """Log a request that has ended."""
        if not self._share:
            return
        if entry.status < 400 and (entry.path in PROBES or (self._share < 1 and random.random() >= self._share)):  # noqa: S311
            return
        self.tick()
        network = network_of(entry.client)
        if self._logged.total() >= self._rate or self._logged[network] >= max(1, self._rate // 2):
            self._left_out += 1
            return
        self._logged[network] += 1
        if not self._put(entry):
            self._left_out += 1

    def tick(self) -> None:
        """Begin another window, if the time has come. A worker calls it every 100 ms."""
        now = time.monotonic()
        if now - self._window < WINDOW:
            return
        self._window = now
        self._logged.clear()
        if self._left_out and self._put(self._left_out):
            self._left_out = 0

    def close(self) -> None:
        """Wait until what is left was written, some seconds at most; not for the event loop."""
        self._window = float("-inf")
        self.tick()
        if self._thread:
            with suppress(Full):
                self._queue.put(None, timeout=_CLOSE)
                self._thread.join(_CLOSE)

    def _put(self, item: Entry | int) -> bool:
        if self._thread is None:  # not before the process has forked
            self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(item)
        except Full:  # who reads the log has stopped
            return False
        return True

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, int):
                log.warning("left out the lines of %d more requests", item)
            else:
                log.log(_level(item.status), "%s", _text(item), extra={"fields": _fields(item)})


def _level(status: int) -> int:
    if status >= 500:
        return logging.ERROR
    return logging.WARNING if status >= 400 and status != CLIENT_GONE else logging.INFO


def _reason(entry: Entry) -> str | None:
    if entry.status < 400:
        return None
    reason = entry.reason or _REASONS.get(entry.status)
    return printable(reason, MAX_REASON) if reason else None


def _text(entry: Entry) -> str:
    parts = [f"{word(entry.method, 20)} {word(entry.path, MAX_PATH)} {entry.status} {entry.seconds * 1000:.0f} ms"]
    if entry.first is not None:
        parts.append(f"first token {entry.first * 1000:.0f} ms")
    if entry.tokens:
        parts.append("tokens {}+{}".format(*entry.tokens))
    parts += [f"version {word(entry.version, 100)}", f"client {word(entry.client, 50) or 'local'}"]
    parts.append(f"id {word(entry.request_id, 128)}")
    reason = _reason(entry)
    return ", ".join(parts) + (f": {reason}" if reason else "")


def _fields(entry: Entry) -> dict[str, object]:
    values: dict[str, object | None] = {
        "REQUEST_ID": word(entry.request_id, 128),
        "MODEL_VERSION": printable(entry.version, 100),
        "HTTP_METHOD": word(entry.method, 20),
        "HTTP_PATH": word(entry.path, MAX_PATH),
        "HTTP_STATUS": entry.status,
        "DURATION_MS": round(entry.seconds * 1000),
        "TTFT_MS": None if entry.first is None else round(entry.first * 1000),
        "PROMPT_TOKENS": entry.tokens and entry.tokens[0],
        "COMPLETION_TOKENS": entry.tokens and entry.tokens[1],
        "CLIENT": word(entry.client, 50) or "local",
        "REASON": _reason(entry),
    }
    return {name: value for name, value in values.items() if value is not None}
