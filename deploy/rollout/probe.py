"""What a client feels while the socket changes hands: two that ask for something small, again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx

_PAUSE = 0.01  # seconds between an answer and the next question
_PATIENCE = 3600.0  # seconds; a swap lets clients wait for as long as a model loads
_FIRST = 2.0  # seconds for the first answers, before which nothing is begun
_LEAVE = 5.0


class Probe:
    """One client that connects anew for every request and one that keeps its connection; both note their longest wait.

    An unanswered one is not interrupted: who ends the probe while nobody serves leaves it to the process's end.
    """

    def __init__(self, listen: Callable[[], str | None]) -> None:
        self._listen = listen
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._longest = 0.0
        self.asked = 0
        self.failed = 0

    @property
    def longest_ms(self) -> float | None:
        """The longest wait so far, in milliseconds; None when nobody was answered."""
        return round(self._longest * 1000, 1) if self._longest else None

    def begin(self) -> None:
        """Begin to ask; returns when both were answered once, so that what is measured is what comes now."""
        address = self._listen()
        if self._threads or address is None:
            return
        for keeps in (False, True):
            answered = threading.Event()
            thread = threading.Thread(target=self._ask, args=(address, keeps, answered), name="probe", daemon=True)
            self._threads.append(thread)
            thread.start()
            answered.wait(_FIRST)

    def end(self) -> None:
        """Ask no more."""
        self._over.set()
        for thread in self._threads:
            thread.join(_LEAVE)

    def _ask(self, address: str, keeps: bool, answered: threading.Event) -> None:
        headers = {} if keeps else {"connection": "close"}
        transport = httpx.HTTPTransport(verify=False)
        with httpx.Client(
            transport=transport, base_url=f"http://{address}", timeout=_PATIENCE, trust_env=False
        ) as client:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    client.get("/version", headers=headers)
                except httpx.HTTPError:
                    with self._lock:
                        self.failed += 1
                else:
                    with self._lock:
                        self.asked += 1
                        self._longest = max(self._longest, time.monotonic() - began) if answered.is_set() else 0.0
                    answered.set()
                self._over.wait(_PAUSE)
