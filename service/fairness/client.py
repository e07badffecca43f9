"""Who sent a request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from service.contract.network import network_of

__all__ = ["BATCHES", "NOBODY", "Client"]


class Client(NamedTuple):
    """A client: an API key of an address. Those of one address share its part.

    `address` is empty for connections without one (a Unix socket). `key` names the owner of files and batches: another
    one would make them unreachable. It is the name of a key that was checked; else a digest of what `Authorization`
    has, or empty without it.
    """

    address: str
    key: str = ""

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Client:
        """Return the client of an ASGI request."""
        peer = scope.get("client")
        address = network_of(peer[0]) if peer else ""
        caller = scope.get("state", {}).get("caller")
        if caller is not None:
            return cls(address, caller)
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return cls(address, _digest(header.strip()))


NOBODY = Client("")
"""The client of a request whose origin is unknown."""

BATCHES = Client("batches")
"""The client of all lines of all batches of this worker."""


def _digest(authorization: bytes) -> str:
    """Return a digest of the key, which has one length, so that no key is held in memory, stored or logged."""
    scheme, _, token = authorization.partition(b" ")
    key = token.strip() if scheme.lower() == b"bearer" else authorization
    return hashlib.blake2b(key, digest_size=16).hexdigest() if key else ""
