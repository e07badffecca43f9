"""A client that has closed its half of the connection: it may wait for its answer, or it may be gone.

TCP tells the two apart only when something is sent: a host answers with a reset if the connection was closed there. So
the beginning of the answer, which is known, is sent at once.
"""

from __future__ import annotations

import asyncio
import select
from typing import Any

__all__ = ["BegunAnswer", "is_reset"]

_BEGINNING = b"HTTP/1.1 "  # of every status line


class BegunAnswer:
    """A transport to which the beginning of the next answer was written already."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._left = _BEGINNING
        transport.write(_BEGINNING)

    def write(self, data: bytes) -> None:
        """Write the next piece, without what was written of it before."""
        data, self._left = data.removeprefix(self._left), b""
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def is_reset(transport: asyncio.Transport) -> bool:
    """Return whether the connection is closed on both sides; asyncio does not look once it has read the end.

    Of a Unix socket that is so as soon as its client has closed it, of a TCP connection after its host's reset.
    """
    ends = select.poll()
    ends.register(transport.get_extra_info("socket").fileno(), 0)
    return bool(ends.poll(0))
