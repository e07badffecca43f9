"""Who sent a request."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["BATCHES", "NOBODY", "Client"]

IPV6_PREFIX = 64  # bits: one subscriber usually has as many addresses as the rest allows


class Client(NamedTuple):
    """A client: an API key of an address. Keys are not checked here, so those of one address share its part.

    `address` is empty for connections without one (a Unix socket), `key` for requests without `Authorization`; else it
    is a digest of the key, which also names the owner of files and batches: another one would make them unreachable.
    """

    address: str
    key: str = ""

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Client:
        """Return the client of an ASGI request."""
        peer = scope.get("client")
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return cls(_network(peer[0]) if peer else "", _digest(header.strip()))


NOBODY = Client("")
"""The client of a request whose origin is unknown."""

BATCHES = Client("batches")
"""The client of all lines of all batches of this worker."""


def _digest(authorization: bytes) -> str:
    """Return a digest of the key, which has one length, so that no key is held in memory, stored or logged."""
    scheme, _, token = authorization.partition(b" ")
    key = token.strip() if scheme.lower() == b"bearer" else authorization
    return hashlib.blake2b(key, digest_size=16).hexdigest() if key else ""


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed.packed, IPV6_PREFIX), strict=False))
