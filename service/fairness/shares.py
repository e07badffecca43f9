"""How much each client holds of what is given to clients in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from service.fairness.client import Client

__all__ = ["Shares"]


class Shares:
    """The numbers of units that addresses hold, and keys of addresses; `holders` has the client of each unit.

    If a free unit always goes to the waiting client whose `of` is least, the shares become as equal as the demand
    allows (max-min fairness): between addresses, and between the keys of an address.
    """

    def __init__(self, holders: Iterable[Client]) -> None:
        self._of_clients = Counter(holders)
        self._of_addresses: Counter[str] = Counter()
        for client, count in self._of_clients.items():
            self._of_addresses[client.address] += count

    def of(self, client: Client) -> tuple[int, int]:
        """Return what the client's address holds, and what the client itself holds."""
        return self._of_addresses[client.address], self._of_clients[client]
