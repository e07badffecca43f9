"""Responses to requests that no application sees: what is no HTTP, too large, or too slow."""

from __future__ import annotations

from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

__all__ = ["KINDS", "TEXTS", "plain_error"]

TEXTS = {
    400: "The request is no valid HTTP.",
    408: "The request took too long to arrive.",
    414: "The URL is too long.",
    431: "The head of the request is too large.",
    503: "There is no room for another connection; try again later.",
}
KINDS = {
    400: "invalid_http",
    408: "request_timeout",
    414: "url_too_long",
    431: "head_too_large",
    503: "too_many_connections",
}
"""Under which they are counted in glm_errors_total."""


def plain_error(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a whole response of 400, 408, 414, 431 or 503, after which the connection is closed."""
    text = TEXTS[status].encode()
    lines = [b"%b: %b\r\n" % header for header in headers]
    length = b"content-length: %d\r\n" % len(text)
    lines += [b"content-type: text/plain; charset=utf-8\r\n", length, b"connection: close\r\n\r\n"]
    return b"".join([STATUS_LINE[status], *lines, text])
