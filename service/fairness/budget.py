"""An amount of which each client may hold a part."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager

from service.fairness.client import Client

__all__ = ["Budget", "Exhausted", "Holding"]

_Turn = tuple[int, "Future[None]"]


class Exhausted(Exception):
    """The amount is not free. `by_client`: because of what the client itself holds."""

    def __init__(self, *, by_client: bool) -> None:
        super().__init__("the client holds its whole share" if by_client else "nothing is free")
        self.by_client = by_client


class Holding:
    """What a client holds of a budget, until it is given back."""

    def __init__(self, budget: Budget, client: Client, amount: int) -> None:
        self._budget = budget
        self._client = client
        self.amount = amount

    def give_back(self, amount: int | None = None) -> None:
        """Give back a part, or by default all; what is not held any more is ignored."""
        amount = self.amount if amount is None else min(amount, self.amount)
        self.amount -= amount
        self._budget._give(self._client, amount)  # noqa: SLF001  (Holding is a part of Budget)

    def add(self, amount: int) -> None:
        """Hold more, at once; raises Exhausted."""
        self.amount += self._budget.take(self._client, amount).amount


class Budget:
    """`total` units, of which one address, and so one key of it, holds at most `share`. All methods are thread-safe.

    A request for more than `share` counts as one for `share`: limits of single requests are checked elsewhere, and such
    a request runs alone. Those that wait are served in turn: an address after another, the keys of an address after
    another, the requests of a key in order of arrival.
    """

    def __init__(self, total: int, share: int) -> None:
        self._free = total
        self._share = max(1, min(share, total))
        self._held: Counter[str] = Counter()  # by address
        self._waiting: dict[str, dict[str, deque[_Turn]]] = {}  # by address and key, the next turn first
        self._lock = threading.Lock()
        self.total = total

    @classmethod
    def shared(cls, total: int, part: float) -> Budget:
        """Return a budget of which one address holds at most this part, rounded up."""
        return cls(total, math.ceil(total * part))

    @property
    def held(self) -> int:
        """The units that are held."""
        return self.total - self._free

    def take(self, client: Client, amount: int = 1) -> Holding:
        """Hold an amount at once; raises Exhausted."""
        amount = min(amount, self._share)
        with self._lock:
            if self._held[client.address] + amount > self._share:
                raise Exhausted(by_client=True)
            if amount > self._free:
                raise Exhausted(by_client=False)
            self._take(client.address, amount)
        return Holding(self, client, amount)

    async def wait(self, client: Client, amount: int = 1) -> Holding:
        """Hold an amount as soon as it is this request's turn."""
        amount = min(amount, self._share)
        turn: Future[None] = Future()
        with self._lock:
            self._waiting.setdefault(client.address, {}).setdefault(client.key, deque()).append((amount, turn))
            self._serve()
        if not turn.done():
            try:
                await asyncio.wrap_future(turn)
            except asyncio.CancelledError:
                if not turn.cancel():  # it was served meanwhile
                    self._give(client, amount)
                raise
        return Holding(self, client, amount)

    @asynccontextmanager
    async def hold(self, client: Client, amount: int = 1) -> AsyncIterator[Holding]:
        """Wait for an amount and hold it for the block."""
        holding = await self.wait(client, amount)
        try:
            yield holding
        finally:
            holding.give_back()

    def _take(self, address: str, amount: int) -> None:
        self._free -= amount
        self._held[address] += amount

    def _give(self, client: Client, amount: int) -> None:
        with self._lock:
            self._free += amount
            self._held[client.address] -= amount
            if not self._held[client.address]:
                del self._held[client.address]
            self._serve()

    def _serve(self) -> None:
        """Serve waiting requests, one of an address at a time, until the next in turn does not fit."""
        served = True
        while served:
            served = False
            for address in list(self._waiting):
                amount, turn = self._first(address)
                if turn.done():  # cancelled
                    self._drop_first(address)
                    served = True
                elif self._held[address] + amount > self._share:
                    continue  # waits for itself; others may pass
                elif amount > self._free:
                    return  # a large request would otherwise wait as long as smaller ones come
                else:
                    self._drop_first(address)
                    if turn.set_running_or_notify_cancel():
                        self._take(address, amount)
                        turn.set_result(None)
                    served = True

    def _first(self, address: str) -> _Turn:
        return next(iter(self._waiting[address].values()))[0]

    def _drop_first(self, address: str) -> None:
        """Remove the first request of an address; its key, and the address, go to the end."""
        keys = self._waiting.pop(address)
        key, turns = next(iter(keys.items()))
        del keys[key]
        turns.popleft()
        if turns:
            keys[key] = turns
        if keys:
            self._waiting[address] = keys
