"""The classes of clients; each uses its connection in a way that a handover can break.

The first paragraph of each docstring is printed by `python -m deploy.loadtest --help`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields

from deploy.loadtest.client import Client


@dataclass(frozen=True, slots=True)
class Mix:
    """The number of clients of each class."""

    busy: int = 4
    pool: int = 8
    silent: int = 3
    upload: int = 2
    stream: int = 2
    pipelined: int = 2
    one_shot: int = 2
    http10: int = 1

    def __post_init__(self) -> None:
        for name, count in self.counts().items():
            if count < 0:
                raise ValueError(f"{count} {name} clients: a count cannot be negative")

    def counts(self) -> dict[str, int]:
        """Return the number of clients by class name."""
        return {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}

    def scaled(self, factor: float) -> Mix:
        """Multiply every class; a class that has clients keeps at least one."""
        return Mix(*(max(1, round(count * factor)) if count else 0 for count in self.counts().values()))


async def busy(client: Client) -> None:
    """Keep-alive; sends the next request as soon as the response is complete. Nine of ten are GET /version, one a chat.

    The connection is always at, or close to, a request boundary.
    """
    number = client.random.randrange(10)
    while not client.stopping:
        number += 1
        request = client.requests.chat(number // 10) if number % 10 == 0 else client.requests.version()
        await client.send(request)
        await client.pause()


async def pool(client: Client) -> None:
    """Keep-alive; idle for 0.2 to 2 s between requests, as in a connection pool.

    The next request goes over the same connection, wherever that was handed over meanwhile.
    """
    while not client.stopping:
        request = client.requests.models()
        await client.send(request)
        await client.idle(0.2, 2.0, next_request=request)


async def silent(client: Client) -> None:
    """Connects, waits 0.3 to 1.5 s, then sends its first request and disconnects.

    The connection is accepted, or still in the backlog, when it is handed over.
    """
    while not client.stopping:
        request = client.requests.version()
        if await client.connect(next_request=request) and await client.idle(0.3, 1.5, next_request=request):
            await client.send(request)
        await client.disconnect()


async def upload(client: Client) -> None:
    """Keep-alive; sends a chat in eleven pieces over 0.5 to 2 s.

    A part of a request is on the connection when the handover begins.
    """
    number = client.random.randrange(100)
    while not client.stopping:
        number += 1
        await client.send(client.requests.chat(number, padding=4096), duration=client.random.uniform(0.5, 2.0))


async def stream(client: Client) -> None:
    """Keep-alive; reads chats as server-sent events, one after the other.

    The response is being sent when the handover begins.
    """
    number = client.random.randrange(100)
    while not client.stopping:
        number += 1
        await client.send(client.requests.stream(number))
        await client.pause()


async def pipelined(client: Client) -> None:
    """Keep-alive; sends four requests in one write.

    The server has read requests ahead when a response is complete.
    """
    requests = client.requests
    while not client.stopping:
        await client.send(requests.version(), requests.models(), requests.version(), requests.models())
        await client.pause()


async def one_shot(client: Client) -> None:
    """Opens a connection for each request (Connection: close), 2 to 20 ms after the previous one.

    New connections arrive in every state of the listening socket.
    """
    while not client.stopping:
        await client.send(client.requests.version(close=True))
        await asyncio.sleep(client.random.uniform(0.002, 0.02))


async def http10(client: Client) -> None:
    """As one-shot, with HTTP/1.0; a response must be followed by a FIN."""
    while not client.stopping:
        await client.send(client.requests.version(http10=True))
        await asyncio.sleep(client.random.uniform(0.002, 0.02))


CLASSES: Mapping[str, Callable[[Client], Awaitable[None]]] = {
    "busy": busy,
    "pool": pool,
    "silent": silent,
    "upload": upload,
    "stream": stream,
    "pipelined": pipelined,
    "one-shot": one_shot,
    "http10": http10,
}
