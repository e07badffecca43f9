"""The log of refused requests: who sent what, and why it was refused, at a bounded rate."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from service.contract.network import network_of
from service.contract.printable import printable, word

__all__ = ["MAX_LINES", "MAX_LINES_OF_ADDRESS", "RefusalLog"]

WINDOW = 1.0  # seconds
MAX_LINES = 10  # in a window, and one more that says how many were left out
MAX_LINES_OF_ADDRESS = 5  # so that one address does not hide what is refused to others
MAX_PATH = 200  # characters, as MAX_REASON
MAX_REASON = 300

log = logging.getLogger("service")


class RefusalLog:
    """Logs refused requests, one a line. Its methods must be called in the thread of an event loop that runs.

    What comes from clients is cut, and escaped so that a line has printable ASCII alone: a client can neither begin a
    line of its own nor reach the terminal of a reader. Queries and headers, which may hold secrets, are left out.
    """

    def __init__(self) -> None:
        self._logged: Counter[str] = Counter()  # in this window, by address or network
        self._left_out: Counter[str] = Counter()
        self._window: asyncio.TimerHandle | None = None

    def add(self, address: str, method: str, path: str, status: int, reason: str) -> None:
        """Log a request that was answered with a status from 400 to 499; `address` is empty for a Unix socket."""
        if self._window is None:
            self._window = asyncio.get_running_loop().call_later(WINDOW, self._end_window)
        network = network_of(address)
        if self._logged.total() >= MAX_LINES or self._logged[network] >= MAX_LINES_OF_ADDRESS:
            self._left_out[network] += 1
            return
        self._logged[network] += 1
        line = (status, word(address, 50) or "local", word(method, 20), word(path, MAX_PATH))
        log.warning("refused with %d: %s %s %s: %s", *line, printable(reason, MAX_REASON))

    def _end_window(self) -> None:
        self._window = None
        if self._left_out:
            ((network, most),) = self._left_out.most_common(1)
            total = self._left_out.total()
            name = word(network, 50) or "local"
            log.warning("refused %d more requests within %g s, %d of them from %s", total, WINDOW, most, name)
        self._logged.clear()
        self._left_out.clear()
