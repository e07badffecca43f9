"""Connections that clients keep open, idle until they ask which version answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["KeptConnections", "Moved"]

REQUEST = b"GET /version HTTP/1.1\r\nHost: bench\r\n\r\n"
PAUSE = 0.005  # seconds between two requests of one connection while it waits for the new version
PARALLEL = 500  # connections that are opened at a time


@dataclass(frozen=True)
class Moved:
    """What a switch did to the connections."""

    seconds: float | None
    """Until each of them had an answer of the new version; None if one had none within the limit."""
    closed: int
    """Connections that the server had closed; their clients opened another one."""


class _Connection:
    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.closed = 0

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 16)

    async def version(self) -> str:
        """Return the version that answers; raises OSError and EOFError when there is no whole answer."""
        self._writer.write(REQUEST)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        await self._reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
        if not head.startswith(b"http/1.1 200") or b"\r\nconnection: close" in head:
            raise EOFError(head)
        return head.partition(b"x-model-version: ")[2].split(b"\r")[0].decode()

    async def ask(self) -> str | None:
        """Return the version that answers; None, and another connection, if none does."""
        try:
            return await self.version()
        except (OSError, EOFError):
            await self.reopen()
            return None

    async def reopen(self) -> None:
        """Open another connection, if the server accepts one."""
        self.closed += 1
        self._writer.close()
        with suppress(OSError):
            await self.open()

    async def until(self, version: str, deadline: float) -> bool:
        """Ask until that version answers, on other connections once this one is closed."""
        while time.monotonic() < deadline:
            try:
                async with asyncio.timeout_at(deadline - time.monotonic() + asyncio.get_running_loop().time()):
                    if await self.version() == version:
                        return True
            except (OSError, EOFError):
                await self.reopen()
            except TimeoutError:
                break
            await asyncio.sleep(PAUSE)
        return False

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class KeptConnections:
    """An `async with` block in which `number` connections are open; each has had an answer."""

    def __init__(self, address: str, number: int) -> None:
        host, port = address.split(":")
        self._connections = [_Connection(host, int(port)) for _ in range(number)]

    async def __aenter__(self) -> KeptConnections:
        for first in range(0, len(self._connections), PARALLEL):
            some = self._connections[first : first + PARALLEL]
            await asyncio.gather(*(connection.open() for connection in some))
            await asyncio.gather(*(connection.version() for connection in some))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections))

    async def until(self, version: str, *, began: float, limit: float) -> Moved:
        """Ask on all until the version answers each; `began` in CLOCK_MONOTONIC seconds, `limit` in seconds."""
        closed = sum(connection.closed for connection in self._connections)
        deadline = time.monotonic() + limit
        ended = await asyncio.gather(*(connection.until(version, deadline) for connection in self._connections))
        seconds = time.monotonic() - began if all(ended) else None
        return Moved(seconds, sum(connection.closed for connection in self._connections) - closed)

    async def ask(self) -> tuple[dict[str, int], int]:
        """Ask once on each; returns the number of answers by version, and that of connections without one."""
        answers = Counter(await asyncio.gather(*(connection.ask() for connection in self._connections)))
        lost = answers.pop(None, 0)
        return {version: number for version, number in answers.items() if version}, lost
