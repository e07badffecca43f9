"""How fast clients may send: to take bytes in costs time that every other request needs, too."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.contract.network import network_of

__all__ = ["ReadRate"]

_BURST = 0.25  # seconds: bytes that a client may send at once, by its rate
_MANY = 1024  # clients that are remembered, before those are dropped that have sent nothing lately


class ReadRate:
    """A token bucket for each address or network, filled with `rate` bytes a second."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._free_at: dict[str, float] = {}  # when the client's bucket is full again, by network

    def spend(self, address: str, size: int) -> float:
        """Count bytes that an address has sent; returns the seconds for which no more of it is to be read."""
        now, network = self._clock(), network_of(address)
        free_at = max(now, self._free_at.get(network, now)) + size / self._rate
        self._free_at[network] = free_at
        if len(self._free_at) > _MANY:
            self._free_at = {one: at for one, at in self._free_at.items() if at > now}
        return max(0.0, free_at - now - _BURST)
