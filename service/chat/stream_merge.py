"""Merging of several asynchronous streams into one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

__all__ = ["merge_streams"]

T = TypeVar("T")


async def merge_streams(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yield items as they arrive, each with the index of its stream.

    The first exception is raised and closes all streams, as does closing this generator.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for item in stream:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def drain(index: int) -> None:
        try:
            async with aclosing(streams[index]) as stream:
                async for item in stream:
                    queue.put_nowait((index, item))
        except Exception as error:  # raised below, in the consumer's task
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(drain(index)) for index in range(len(streams))]
    try:
        for _ in streams:
            while (queued := await queue.get()) is not None:
                if isinstance(queued, Exception):
                    raise queued
                yield queued
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
