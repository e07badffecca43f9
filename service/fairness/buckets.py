"""How much each client may use of what comes back with time: bytes a second, or seconds of work a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.contract.network import network_of

__all__ = ["TokenBuckets"]

_MANY = 1024  # clients that are remembered, before those are dropped that have used nothing lately


class TokenBuckets:
    """A token bucket for each address or network, filled with `rate` tokens a second up to `burst` tokens."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst / rate  # seconds to fill a bucket
        self._clock = clock
        self._free_at: dict[str, float] = {}  # when the client's bucket is full again, by network

    def spend(self, address: str, tokens: float) -> float:
        """Count tokens that an address has used; returns the seconds for which it is to use no more."""
        now, network = self._clock(), network_of(address)
        free_at = max(now, self._free_at.get(network, now)) + tokens / self._rate
        self._free_at[network] = free_at
        if len(self._free_at) > _MANY:
            self._free_at = {one: at for one, at in self._free_at.items() if at > now}
        return max(0.0, free_at - now - self._burst)
