"""The access log: one line for each request that has ended, at a bounded rate, written by a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from service.contract.network import network_of
from service.contract.printable import printable, word
from service.contract.route import Route
from service.contract.samples import BROKEN_OFF, CLIENT_GONE
from service.logs.handler import Line, new_writer
from service.refusals import MAX_PATH, MAX_REASON
from service.timing import PROBES, AnswerTimes

__all__ = ["INTERNAL", "AccessLog", "Entry"]

WINDOW = 1.0  # seconds
INTERNAL = "internal"
"""In place of the client's address, for what is asked on the slot's internal socket."""

_CLOSE = 1.0  # seconds for what is left
_REASONS = {CLIENT_GONE: "the client has disconnected", BROKEN_OFF: "the answer was broken off"}


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
    times: AnswerTimes | None = None
    route: Route | None = None  # of the connection; None if this worker accepted it
    handoff: float | None = None  # seconds for which the request waited until this worker had it

    @property
    def level(self) -> int:
        """The level of its line: an error is the server's fault."""
        if self.status >= 500:
            return logging.ERROR
        return logging.WARNING if self.status >= 400 and self.status != CLIENT_GONE else logging.INFO

    @property
    def text(self) -> str:
        """Its line, in printable ASCII."""
        first = "" if self.first is None else f", first token {self.first * 1000:.0f} ms"
        tokens = "" if self.tokens is None else f", tokens {self.tokens[0]}+{self.tokens[1]}"
        phases = "".join(f", {name} {milliseconds} ms" for name, milliseconds in self._phases.items())
        reason = f": {self._reason}" if self._reason else ""
        return (
            f"{word(self.method, 20)} {word(self.path, MAX_PATH)} {self.status} {self.seconds * 1000:.0f} ms"
            f"{first}{tokens}{phases}{self._came}, version {word(self.version, 100)}"
            f", client {word(self.client, 50) or 'local'}, id {word(self.request_id, 128)}{reason}"
        )

    def fields(self) -> dict[str, object]:
        """Return its fields for the journal."""
        values: dict[str, object | None] = {
            "REQUEST_ID": word(self.request_id, 128),
            "MODEL_VERSION": printable(self.version, 100),
            "HTTP_METHOD": word(self.method, 20),
            "HTTP_PATH": word(self.path, MAX_PATH),
            "HTTP_STATUS": self.status,
            "DURATION_MS": round(self.seconds * 1000),
            "TTFT_MS": None if self.first is None else round(self.first * 1000),
            "PROMPT_TOKENS": self.tokens and self.tokens[0],
            "COMPLETION_TOKENS": self.tokens and self.tokens[1],
            "CLIENT": word(self.client, 50) or "local",
            "REASON": self._reason,
            **{f"{name.upper()}_MS": milliseconds for name, milliseconds in self._phases.items()},
            "ACCEPTED_BY": self.route and self.route.accepted_by,
            "HANDED_OVER_BY": self.route and self.route.handed_over_by,
            "HANDOVERS": self.route and self.route.handovers,
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def _phases(self) -> dict[str, int]:
        """The milliseconds of what is known of its parts."""
        seconds = {} if self.handoff is None else {"handoff": self.handoff}
        if self.times:
            seconds |= {name: end - begin for name, (begin, end) in self.times.phases.items()}
        return {name: round(part * 1000) for name, part in seconds.items()}

    @property
    def _came(self) -> str:
        if self.route is None:
            return ""
        route = self.route
        return f", accepted by {route.accepted_by}, handed over by {route.handed_over_by}, handovers {route.handovers}"

    @property
    def _reason(self) -> str | None:
        reason = self.status >= 400 and (self.reason or _REASONS.get(self.status))
        return printable(reason, MAX_REASON) if reason else None


class AccessLog:
    """Logs requests with their fields. Its methods must be called in one thread; but for `close`, none of them waits.

    `share`: the part of the requests that are logged; of those that failed all are, unless it is 0. At most `rate`
    lines a second are written, half of them of one address, so that it does not hide the others; what was left out is
    counted in a line. Lines have no queries, headers or bodies, which may hold secrets, and printable ASCII alone.

    Lines are written together, every 100 ms: to wake a thread for each takes longer than all else of a line.
    """

    def __init__(
        self, share: float, rate: int, new_writer: Callable[[], Callable[[Sequence[Line]], None]] = new_writer
    ) -> None:
        self._share, self._rate, self._new_writer = share, rate, new_writer
        self._window = float("-inf")
        self._logged: Counter[str] = Counter()  # in this window, by network
        self._total = 0
        self._left_out = 0
        self._pending: list[Entry] = []
        self._batches: SimpleQueue[list[Line | Entry] | None] = SimpleQueue()
        self._is_writing = False
        self._thread: threading.Thread | None = None

    @property
    def is_on(self) -> bool:
        """Whether requests that fail get a line."""
        return self._share > 0

    def wants(self, path: str, status: int, client: str) -> bool:
        """Return whether a request that has ended gets a line: it failed, or is no probe and is chosen.

        Those beyond the rate get none and are counted.
        """
        if not self._share:
            return False
        if status < 400 and (path in PROBES or (self._share < 1 and random.random() >= self._share)):  # noqa: S311
            return False
        if time.monotonic() - self._window >= WINDOW:
            self.tick()
        network = network_of(client)
        if (
            self._total >= self._rate
            or self._logged[network] >= max(1, self._rate // 2)
            or len(self._pending) >= self._rate  # who reads the log has stopped
        ):
            self._left_out += 1
            return False
        self._total += 1
        self._logged[network] += 1
        return True

    def add(self, entry: Entry) -> None:
        """Log a request that `wants` has chosen, with the next tick."""
        self._pending.append(entry)

    def tick(self) -> None:
        """Have written what was added since the last call. A worker calls it every 100 ms."""
        now = time.monotonic()
        ends_window = now - self._window >= WINDOW
        if ends_window:
            self._window, self._total = now, 0
            self._logged.clear()
        if self._is_writing or not (self._pending or (ends_window and self._left_out)):
            return
        batch: list[Line | Entry] = [*self._pending]
        self._pending = []
        if ends_window and self._left_out:
            batch.append(Line(logging.WARNING, f"left out the lines of {self._left_out} more requests"))
            self._left_out = 0
        if self._thread is None:  # not before the process has forked
            self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
            self._thread.start()
        self._is_writing = True
        self._batches.put(batch)

    def close(self) -> None:
        """Wait until what is left was written, some seconds at most; not for the event loop."""
        deadline = time.monotonic() + _CLOSE
        while self._is_writing and time.monotonic() < deadline:
            time.sleep(0.001)
        self._window = float("-inf")
        self.tick()
        if self._thread:
            self._batches.put(None)
            self._thread.join(_CLOSE)

    def _write(self) -> None:
        write = self._new_writer()
        while (batch := self._batches.get()) is not None:
            try:
                write([Line(one.level, one.text, one.fields) if isinstance(one, Entry) else one for one in batch])
            except OSError:  # stderr is closed or its disk is full
                pass
            finally:
                self._is_writing = False
