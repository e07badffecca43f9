"""Which clients count as one: those of one address, or of one IPv6 network."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network

__all__ = ["network_of"]

_PREFIX = 64  # bits: one subscriber usually has as many addresses as the rest allows


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Return what all addresses of a client have in common: an IPv4 address itself, of an IPv6 address its /64 network.

    An IPv4 address that is mapped to IPv6 is the IPv4 address; anything else is returned as it is.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ip_network((parsed.packed, _PREFIX), strict=False))
