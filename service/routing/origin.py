"""Which client sent a request, for the samples: hashes of its address and of its API key, and whether it is pinned."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from service.contract.network import network_of
from service.contract.processes import boot_id
from service.contract.samples import Origin
from service.routing.canary import PIN, SIDES
from service.timing import Message

__all__ = ["origin_of"]

_AUTHORIZATION, _PIN = b"authorization", PIN.encode()
_SIDES = {side.encode() for side in SIDES}


def origin_of(scope: Message) -> Origin:
    """Return the origin of a request, from its ASGI scope."""
    key = pinned = b""
    for name, value in scope["headers"]:
        if name == _AUTHORIZATION:
            key = key or value
        elif name == _PIN:
            pinned = pinned or value
    client = scope.get("client")
    return Origin(_of_address(client[0]) if client else 0, _hash(key) if key else 0, pinned in _SIDES)


@lru_cache(maxsize=1024)
def _of_address(address: str) -> int:
    return _hash(network_of(address).encode())


def _hash(value: bytes) -> int:
    """Return 32 bits that are equal in all processes of this boot, and tell nothing about the value."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=4, key=boot_id().encode()).digest())
