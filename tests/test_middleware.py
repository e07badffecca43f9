"""The ASGI middleware around the application."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.api.middleware import RequestMiddleware
from service.chat.errors import ApiError
from service.identity import Identity

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
FIRST: Message = {"type": "http.response.body", "body": b"a", "more_body": True}


@pytest.fixture
def identity() -> Identity:
    return Identity("1.2.0", "green", 1)


def serve(
    identity: Identity, app: Callable[[Scope, Receive, Send], Awaitable[None]], **state: Any
) -> tuple[list[Message], Exception | None]:
    """Serve one request and return what was sent and what was raised."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/x", "headers": [(b"x-request-id", b"r7")]}
    scope["state"], scope["app"] = state, Starlette()
    try:
        asyncio.run(RequestMiddleware(app, identity)(scope, receive, send))
    except ZeroDivisionError as error:
        return sent, error
    return sent, None


def test_unhandled_exception_is_a_labelled_500(identity: Identity, caplog: pytest.LogCaptureFixture) -> None:
    """An exception before the response starts is logged once and answered with a 500 that carries the headers."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ZeroDivisionError

    sent, error = serve(identity, app)
    assert error is None
    assert sent[0]["status"] == 500
    headers = dict(sent[0]["headers"])
    assert headers[b"x-model-version"] == identity.version.encode()
    assert (headers[b"x-slot"], headers[b"x-request-id"]) == (b"green", b"r7")
    assert b"r7" in sent[1]["body"]
    assert [record.getMessage() for record in caplog.records] == ["request r7 failed"]


def test_exception_after_the_start_is_raised(identity: Identity) -> None:
    """An exception in the middle of a response reaches the server, which closes the connection."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(dict(START))
        await send(FIRST)
        raise ZeroDivisionError

    sent, error = serve(identity, app)
    assert error is not None
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("messages", [[], [START, FIRST]])
def test_disconnect_is_no_error(identity: Identity, messages: list[Message], caplog: pytest.LogCaptureFixture) -> None:
    """A client that disconnects, before or during the response, causes neither a log line nor another response."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(dict(message))
        raise ClientDisconnect

    sent, error = serve(identity, app)
    assert (error, len(sent), caplog.records) == (None, len(messages), [])


def test_response_names_the_version_that_answered(identity: Identity) -> None:
    """The version that a handler stores in the state labels the response."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        scope["state"]["version"] = "1.1.0"
        await send(dict(START))
        await send({"type": "http.response.body", "body": b""})

    sent, _ = serve(identity, app)
    assert dict(sent[0]["headers"])[b"x-model-version"] == b"1.1.0"


@pytest.mark.parametrize("given", [b"", b" x", b"a\nb", b"\xff", b"x" * 129, None])
def test_requests_without_a_valid_id_get_different_ones(identity: Identity, given: bytes | None) -> None:
    """An id is made where the client sent none, or an invalid one: no two are equal, also not those of two workers."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(dict(START))

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [] if given is None else [(b"x-request-id", given)]
    for _ in range(2):
        worker = RequestMiddleware(app, identity)
        for _ in range(3):
            asyncio.run(worker({"type": "http", "headers": headers}, send, send))  # type: ignore[arg-type]
    ids = {dict(message["headers"])[b"x-request-id"] for message in sent}
    assert len(ids) == 6
    assert all(re.fullmatch(rb"req-[0-9a-f]{32}", one) for one in ids)


@pytest.mark.parametrize(
    ("raised", "status"), [(ApiError(422, "no", param="n"), 422), (HTTPException(405), 405), (HTTPException(404), 404)]
)
def test_expected_errors_are_error_objects(
    identity: Identity, raised: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors that a request causes are answered with an error object and the labels, and logged in one line."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise raised

    sent, error = serve(identity, app)
    assert (error, sent[0]["status"]) == (None, status)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"refused with {status}: local GET /x: ")
    assert json.loads(sent[1]["body"])["error"]["message"]
    assert dict(sent[0]["headers"])[b"x-request-id"] == b"r7"
