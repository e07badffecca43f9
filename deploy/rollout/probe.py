"""The longest wait of a client during a cutover, measured by two clients with small requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx

_PAUSE = 0.01  # seconds between a response and the next request
_TIMEOUT = 3600.0  # seconds; during a swap a request waits for as long as a model loads
_FIRST = 2.0  # seconds for the first responses
_JOIN = 0.5  # seconds for both threads to end


class Probe:
    """One client that opens a connection per request and one that keeps its connection.

    A wait lasts from the first attempt to a response, however many attempts fail, and counts from `begin` to `end`: in
    full if it ends in between, else as far as it does. `end` does not interrupt a request that is waiting: the threads
    are daemons and end with the process.
    """

    def __init__(self, listen: Callable[[], str | None]) -> None:
        """`listen` returns the host:port of the public socket, None without one."""
        self._listen = listen
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._counted_from = self._counted_to = float("inf")  # monotonic seconds
        self._waiting_from: dict[bool, float] = {}  # by whether the client keeps its connection; monotonic seconds
        self._longest = 0.0
        self.answered = 0

    @property
    def longest_ms(self) -> float | None:
        """The longest wait so far, in milliseconds; None without one."""
        with self._lock:
            longest = max(self._longest, *map(self._counted, self._waiting_from.values()), 0.0)
        return round(longest * 1000, 1) if longest else None

    def begin(self) -> None:
        """Start both clients; returns after their first responses, or after _FIRST seconds for each."""
        address = self._listen()
        if self._threads or address is None:
            return
        for keep_alive in (False, True):
            connected = threading.Event()
            arguments = (address, keep_alive, connected)
            thread = threading.Thread(target=self._run, args=arguments, name="probe", daemon=True)
            self._threads.append(thread)
            thread.start()
            connected.wait(_FIRST)
        self._counted_from = time.monotonic()

    def end(self) -> None:
        """Stop both clients."""
        self._ended.set()
        deadline = time.monotonic() + _JOIN
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._counted_to = time.monotonic()

    def _run(self, address: str, keep_alive: bool, connected: threading.Event) -> None:
        headers = {} if keep_alive else {"connection": "close"}
        transport = httpx.HTTPTransport(verify=False)
        with httpx.Client(
            transport=transport, base_url=f"http://{address}", timeout=_TIMEOUT, trust_env=False
        ) as client:
            while not self._ended.is_set():
                with self._lock:
                    began = self._waiting_from.setdefault(keep_alive, time.monotonic())
                try:
                    client.get("/version", headers=headers)
                except httpx.HTTPError:
                    pass
                else:
                    with self._lock:
                        self.answered += 1
                        self._longest = max(self._longest, self._counted(began))
                        del self._waiting_from[keep_alive]
                    connected.set()
                self._ended.wait(_PAUSE)

    def _counted(self, began: float) -> float:
        """Return the seconds that count of a wait from `began` until now."""
        return min(time.monotonic(), self._counted_to) - max(began, self._counted_from)
