"""Server-sent events, and cancellation of the work for a client that disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.timing import KEEP_ALIVE_COMMENT

__all__ = ["HEAD_DELAY", "EventStream", "cancel_on_disconnect"]

HEAD_DELAY = 0.5
"""Seconds that the head of a stream waits for the first event. A request that is refused meanwhile gets an error
status: its fields, its size and a full queue are known without waiting. Proxies wait for a head for a minute or so."""

T = TypeVar("T")


class EventStream(Response):
    """A response of server-sent events, each of which is sent at once.

    The head is sent with the first event, but after HEAD_DELAY at the latest; whenever nothing was sent for
    `max_silence` seconds, a comment is sent. If that is None, the head waits for the first event, and there are no
    comments.

    An error before the first event is raised if the head was not sent, so that the response can have its status. Else
    it becomes the last event, by `encode_error`. Errors after the first event are encoded by `events` itself.

    `before_first` is closed when the first event has come, or the stream has ended without one.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        encode_error: Callable[[Exception], bytes],
        *,
        max_silence: float | None = None,
        before_first: ExitStack | None = None,
    ) -> None:
        self._events = events
        self._encode_error = encode_error
        self._max_silence = max_silence
        self._before_first = before_first or ExitStack()
        self._sending = asyncio.Lock()
        self._has_begun = False
        self._sent_at = 0.0  # by the clock of the event loop
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        with self._before_first:
            async with aclosing(self._events):  # cancelled in `send`, it is not in the generator
                await cancel_on_disconnect(receive, self._respond(send))

    async def _respond(self, send: Send) -> None:
        # One timer for the stream, which looks when something was sent last: one for each event would cost more.
        keeper = asyncio.create_task(self._keep_alive(send))
        try:
            last = await self._send_events(send)
            async with self._sending:  # what it has begun to send is sent whole
                keeper.cancel()
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        # Nothing may follow: `receive` reports a disconnect from now on.
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_events(self, send: Send) -> bytes:
        """Send the events; return what ends the response."""
        try:
            event = await anext(self._events)
        except Exception as error:
            if not self._has_begun:
                raise
            return self._encode_error(error)
        self._before_first.close()
        await self._send(send, event)
        async for event in self._events:
            await self._send(send, event)
        return b""

    async def _keep_alive(self, send: Send) -> None:
        """Send the head if the first event does not come, then a comment after each silence, until cancelled."""
        if self._max_silence is None:
            return
        now = asyncio.get_running_loop().time
        await asyncio.sleep(HEAD_DELAY)
        async with self._sending:
            await self._begin(send)
        while True:
            await asyncio.sleep(self._sent_at + self._max_silence - now())
            async with self._sending:
                if now() >= self._sent_at + self._max_silence:
                    await self._send_body(send, KEEP_ALIVE_COMMENT)

    async def _send(self, send: Send, event: bytes) -> None:
        async with self._sending:  # a comment may be waiting for the client to read
            await self._begin(send)
            await self._send_body(send, event)

    async def _begin(self, send: Send) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self._sent_at = asyncio.get_running_loop().time()

    async def _send_body(self, send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._sent_at = asyncio.get_running_loop().time()


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; if the client disconnects before, cancel it and raise ClientDisconnect.

    The request's body must have been read, since messages from `receive` are dropped.
    """

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.create_task(wait_for_disconnect())
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
