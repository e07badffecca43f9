"""Several streams as one, each item with the number of its stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

__all__ = ["merged"]

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Give out items as they come; the first failure ends all streams, as closing this one does."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for item in stream:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def drain(number: int) -> None:
        try:
            async with aclosing(streams[number]) as stream:
                async for item in stream:
                    queue.put_nowait((number, item))
        except Exception as error:  # the reader raises it
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(drain(number)) for number in range(len(streams))]
    try:
        for _ in streams:
            while (found := await queue.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
