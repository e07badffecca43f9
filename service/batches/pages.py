"""Lists: read from the database, encoded and sent a slice at a time, so that no list is in memory as a whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.fairness.timed_pool import Calls

__all__ = ["Page", "respond"]


@dataclass(frozen=True)
class Page:
    """A part of a list: OpenAI's JSON objects, the number of the last one's row, and whether more follow."""

    data: list[dict[str, Any]]
    last: int | None
    has_more: bool


class Find(Protocol):
    """Finds a part of a list; it blocks. `after`: the id of the last object before, or the number of its row."""

    def __call__(self, *, after: str | int | None, limit: int) -> Page:
        """Return at most `limit` objects; raises ApiError."""
        ...


@dataclass(frozen=True)
class _Slice:
    content: bytes  # the objects in JSON, with commas between them
    ids: tuple[str, ...]
    last: int | None
    has_more: bool


async def respond(request: Request, calls: Calls, find: Find, *, after: str | None, limit: int, size: int) -> Response:
    """Answer with at most `limit` objects, of which `size` are read at a time; raises what the first slice raises.

    A list that is longer than one slice is not of one moment: what is deleted meanwhile may be missing.
    """
    first = await calls.run(_slice, find, after, min(limit, size))
    if not first.has_more or limit <= size:
        content = _HEAD + first.content + _tail(first.ids, has_more=first.has_more)
        return Response(content, media_type="application/json")

    async def body() -> AsyncIterator[bytes]:
        if request.method == "HEAD":  # nobody would get what is read
            return
        found, ids, left = first, first.ids, limit - len(first.ids)
        yield _HEAD + found.content
        while found.has_more and left:
            found = await calls.run(_slice, find, found.last, min(left, size))
            if found.ids:
                ids, left = (ids[0], found.ids[-1]), left - len(found.ids)
                yield b"," + found.content
        yield _tail(ids, has_more=found.has_more)

    return StreamingResponse(body(), media_type="application/json")


_HEAD = b'{"object":"list","data":['


def _tail(ids: tuple[str, ...], *, has_more: bool) -> bytes:
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return b"]," + _json({"first_id": first, "last_id": last, "has_more": has_more})[1:]


def _slice(find: Find, after: str | int | None, limit: int) -> _Slice:
    page = find(after=after, limit=limit)
    return _Slice(_json(page.data)[1:-1], tuple(one["id"] for one in page.data), page.last, page.has_more)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
