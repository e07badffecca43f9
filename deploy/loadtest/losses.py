"""The ways in which a request is lost."""

from __future__ import annotations

from enum import StrEnum


class LossKind(StrEnum):
    """The way in which a request was lost; the values appear as `kind` in the report."""

    REFUSED = "refused"
    """No connection could be opened."""
    RESET = "reset"
    """The connection was reset (RST) before the response was complete."""
    CLOSED = "closed"
    """The connection ended before the first byte of the response."""
    CUT = "cut"
    """The connection ended within the response, or a stream ended without its last event."""
    IDLE = "idle-close"
    """The server ended an idle connection; the next request on it would have failed."""
    EARLY = "early"
    """A response arrived before the request had been sent completely."""
    EXTRA = "extra"
    """Bytes arrived that belong to no request."""
    MALFORMED = "malformed"
    """The response is not valid HTTP/1.1, or its body is not of the expected type."""
    STATUS = "status"
    """A complete response whose status is not 200."""
    HEADER = "header"
    """A header is missing that every response must carry."""
    MIXED = "mixed"
    """Parts of one response, or two responses that must be equal, come from different models."""
    TIMEOUT = "timeout"
    """No complete response within the time limit."""


class RequestLost(Exception):
    """A request was lost; `detail` is what was received instead of its response."""

    def __init__(self, kind: LossKind, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
