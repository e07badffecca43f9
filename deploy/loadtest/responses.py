"""Strict reading of HTTP/1.1 responses with h11."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import h11

from deploy.loadtest.losses import LossKind, RequestLost
from deploy.loadtest.raw_connection import RawConnection

HEAD_LIMIT = 64 * 1024
BODY_LIMIT = 64 * 1024 * 1024

# h11 parses a response only after a request. Which one does not matter, as long as it is neither HEAD nor CONNECT.
_REQUEST = h11.Request(method="GET", target="/", headers=[("host", "localhost")])
_END_OF_REQUEST = h11.EndOfMessage()

# h11 accepts bare line feeds and folded headers, and merges equal lengths.
_LENIENT_LINE = re.compile(rb"(?<!\r)\n|\n[ \t]")
_FRAMING_HEADER = re.compile(rb"\n(?:content-length|transfer-encoding):([^\r\n]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response; header names are in lower case, repeated headers are joined by a comma."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    closes: bool
    """Whether the connection ends after this response: `connection: close`, HTTP/1.0, or a body delimited by a FIN."""


async def read_response(connection: RawConnection) -> Response:
    """Read one response to its exact end; later bytes stay in the connection.

    Raises RequestLost: RESET, CLOSED or CUT when the connection ends first, MALFORMED when the response is not HTTP/1.1
    or could be interpreted in two ways.
    """
    connection.begin_response()
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
    parser.send(_REQUEST)
    parser.send(_END_OF_REQUEST)
    raw_head, body = b"", bytearray()
    head: h11.Response | None = None
    ended = False
    while True:
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            if ended:
                raise connection.incomplete_response() from None
            raise RequestLost(LossKind.MALFORMED, str(error)) from None
        if isinstance(event, h11.Response):
            head = event
            _check_head(raw_head.removesuffix(parser.trailing_data[0]), event)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_LIMIT:
                raise RequestLost(LossKind.MALFORMED, f"body longer than {BODY_LIMIT} bytes")
        elif isinstance(event, h11.EndOfMessage):
            break
        elif event is h11.NEED_DATA:
            data = await connection.receive()
            ended = not data
            parser.receive_data(data)
            if head is None:
                raw_head += data
    assert head is not None
    if surplus := parser.trailing_data[0]:
        connection.put_back(surplus)
    closes = ended or parser.their_state is h11.MUST_CLOSE
    return Response(head.status_code, head.reason.decode("latin-1"), _headers(head), bytes(body), closes)


def _check_head(raw: bytes, head: h11.Response) -> None:
    if head.http_version not in (b"1.0", b"1.1"):
        raise RequestLost(LossKind.MALFORMED, f"HTTP version {head.http_version.decode('latin-1')}")
    if _LENIENT_LINE.search(raw):
        raise RequestLost(LossKind.MALFORMED, f"bare line feed or folded header: {raw[:60]!r}")
    framing = _FRAMING_HEADER.findall(raw)
    if len(framing) > 1 or any(b"," in value for value in framing):
        raise RequestLost(LossKind.MALFORMED, "more than one content-length or transfer-encoding")


def _headers(head: h11.Response) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers.raw_items():
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
