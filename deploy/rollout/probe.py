"""The longest wait of a client during a cutover, measured by two clients with small requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx

_PAUSE = 0.01  # seconds between a response and the next request
_TIMEOUT = 3600.0  # seconds; during a swap a request waits for as long as a model loads
_FIRST = 2.0  # seconds for the first responses
_JOIN = 5.0  # seconds for a thread to end


class Probe:
    """One client that opens a connection per request and one that keeps its connection.

    `end` does not interrupt a request that is waiting: the threads are daemons and end with the process.
    """

    def __init__(self, listen: Callable[[], str | None]) -> None:
        """`listen` returns the host:port of the public socket, None without one."""
        self._listen = listen
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._longest = 0.0
        self.answered = 0

    @property
    def longest_ms(self) -> float | None:
        """The longest wait so far, in milliseconds; None without a response."""
        return round(self._longest * 1000, 1) if self._longest else None

    def begin(self) -> None:
        """Start both clients; returns after their first responses, which do not count."""
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

    def end(self) -> None:
        """Stop both clients."""
        self._ended.set()
        for thread in self._threads:
            thread.join(_JOIN)

    def _run(self, address: str, keep_alive: bool, connected: threading.Event) -> None:
        headers = {} if keep_alive else {"connection": "close"}
        transport = httpx.HTTPTransport(verify=False)
        with httpx.Client(
            transport=transport, base_url=f"http://{address}", timeout=_TIMEOUT, trust_env=False
        ) as client:
            while not self._ended.is_set():
                began = time.monotonic()
                try:
                    client.get("/version", headers=headers)
                except httpx.HTTPError:
                    pass
                else:
                    with self._lock:
                        self.answered += 1
                        self._longest = max(self._longest, time.monotonic() - began) if connected.is_set() else 0.0
                    connected.set()
                self._ended.wait(_PAUSE)
