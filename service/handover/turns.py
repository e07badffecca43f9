"""Work that clients cause without waiting for an answer: done in slices, one for each client after the other."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from service.contract.network import network_of

__all__ = ["Turns"]

_SHARE = 0.004  # seconds of each iteration of the event loop


class Turns:
    """A queue of slices for each address or network. An iteration of the event loop does no more than one of each."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Callable[[], None]]] = OrderedDict()
        self._is_scheduled = False

    def add(self, address: str, work: Callable[[], None]) -> None:
        """Queue a slice of an address; it is done in a later iteration of the event loop."""
        self._waiting.setdefault(network_of(address), deque()).append(work)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._is_scheduled = False
        end = time.monotonic() + _SHARE
        for network in list(self._waiting):
            slices = self._waiting[network]
            work = slices.popleft()
            if slices:
                self._waiting.move_to_end(network)
            else:
                del self._waiting[network]
            work()
            if time.monotonic() >= end:
                break
        self._schedule()
