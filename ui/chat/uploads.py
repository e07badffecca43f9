"""Uploads of files that are too large to be sent.

Streamlit's browser side drops a file above `server.maxUploadSize` and sends the question without it. That limit is
therefore far above ours, and the server keeps no more of a file than it takes to see that it is too large.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ui.picture import MAX_FILE

__all__ = ["BoundedUploads"]

OVERHEAD = 64 << 10  # bytes; above the multipart headers before a file
TAIL = 1 << 10  # bytes; above the closing boundary

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class BoundedUploads:
    """An ASGI middleware that cuts the file in an upload (PUT, one multipart file) to a little more than MAX_FILE."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        upload = scope["type"] == "http" and scope["method"] == "PUT"
        await self.app(scope, _cut(receive, MAX_FILE + OVERHEAD) if upload else receive, send)


def _cut(receive: Receive, limit: int) -> Receive:
    """Return a `receive` that leaves out what follows `limit` bytes, except the end with the closing boundary."""
    left = limit

    async def receive_cut() -> Message:
        nonlocal left
        message = await receive()
        body = message.get("body", b"")
        if len(body) <= left:
            left -= len(body)
            return message
        begin, end = body[:left], body[left:]
        while message["type"] == "http.request" and message.get("more_body"):
            message = await receive()
            end = (end + message.get("body", b""))[-TAIL:]
        if message["type"] != "http.request":  # the client has gone
            return message
        return {"type": "http.request", "body": begin + end[-TAIL:], "more_body": False}

    return receive_cut
