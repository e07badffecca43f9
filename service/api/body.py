"""Reading of JSON request bodies."""

from __future__ import annotations

from starlette.requests import Request

from service.chat.errors import ApiError

__all__ = ["read_body"]


async def read_body(request: Request, limit: int) -> bytes:
    """Read a JSON body of at most `limit` bytes; raises ApiError 413 and 415, and ClientDisconnect."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            415, f"the content type must be application/json, not {media_type[:100]}", code="unsupported_media_type"
        )
    # The rest of the body is not read, so the connection cannot be reused.
    too_large = ApiError(
        413, f"the request body is larger than {limit} bytes", code="too_large", headers={"Connection": "close"}
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)
