"""Reading of JSON request bodies."""

from __future__ import annotations

from starlette.requests import Request

from service.chat.errors import ApiError
from service.fairness.budget import Exhausted, Holding

__all__ = ["read_body"]


async def read_body(request: Request, limit: int, holding: Holding | None = None) -> bytearray:
    """Read a JSON body of at most `limit` bytes; raises ApiError 413, 415 and 429, and ClientDisconnect.

    The bytes are added to `holding` as they arrive.
    """
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            415, f"the content type must be application/json, not {media_type[:100]}", code="unsupported_media_type"
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
        if holding is not None:
            try:
                holding.add(len(chunk))
            except Exhausted as error:
                raise _no_room(by_client=error.by_client) from None
    return body


# The rest of the body is not read, so the connection cannot be used again.


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"the request body is larger than {limit} bytes", code="too_large", headers={"Connection": "close"}
    )


def _no_room(*, by_client: bool) -> ApiError:
    whose = "requests from this address" if by_client else "requests"
    return ApiError(
        429,
        f"the {whose} that are being worked on take all memory for bodies; try again later",
        code="bodies_full",
        headers={"Connection": "close", "Retry-After": "1"},
    )
