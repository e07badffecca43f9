"""The ASGI middleware around the application."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.api.middleware import RequestMiddleware
from service.identity import Identity

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
FIRST: Message = {"type": "http.response.body", "body": b"a", "more_body": True}


@pytest.fixture
def identity() -> Identity:
    """An identity whose metrics no other test changes."""
    return Identity(f"v-{uuid.uuid4().hex}", "green", 1)


def serve(
    identity: Identity, app: Callable[[Scope, Receive, Send], Awaitable[None]], **state: Any
) -> tuple[list[Message], Exception | None]:
    """Serve one request and return what was sent and what was raised."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(b"x-request-id", b"r7")], "state": state}
    try:
        asyncio.run(RequestMiddleware(app, identity)(scope, receive, send))
    except ZeroDivisionError as error:
        return sent, error
    return sent, None


def requests(version: str, status: str, route: str = "other") -> float | None:
    labels = {"version": version, "slot": "green", "route": route, "status": status}
    return REGISTRY.get_sample_value("glm_requests_total", labels)


def in_flight(version: str) -> float | None:
    return REGISTRY.get_sample_value("glm_requests_in_flight", {"version": version, "slot": "green"})


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
    assert (requests(identity.version, "500"), in_flight(identity.version)) == (1, 0)


def test_exception_after_the_start_is_raised(identity: Identity) -> None:
    """An exception in the middle of a response reaches the server, which closes the connection, and counts as 500."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(dict(START))
        await send(FIRST)
        raise ZeroDivisionError

    sent, error = serve(identity, app)
    assert error is not None
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (requests(identity.version, "500"), in_flight(identity.version)) == (1, 0)


@pytest.mark.parametrize("messages", [[], [START, FIRST]])
def test_disconnect_counts_as_499(
    identity: Identity, messages: list[Message], caplog: pytest.LogCaptureFixture
) -> None:
    """A request whose client disconnects, before or during the response, counts as 499 and is no error."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(dict(message))
        raise ClientDisconnect

    sent, error = serve(identity, app)
    assert (error, len(sent), caplog.records) == (None, len(messages), [])
    assert (requests(identity.version, "499"), in_flight(identity.version)) == (1, 0)


def test_internal_requests_are_counted_apart(identity: Identity) -> None:
    """A request through the slot's internal socket is counted under the route `internal`."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(dict(START))
        await send({"type": "http.response.body", "body": b""})

    serve(identity, app, internal=True)
    assert (requests(identity.version, "200", "internal"), requests(identity.version, "200")) == (1, None)


def test_response_and_metrics_name_the_version_that_answered(identity: Identity) -> None:
    """The version that a handler stores in the state labels the response and the metrics."""
    answered = f"new-{identity.version}"

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        scope["state"]["version"] = answered
        await send(dict(START))
        await send({"type": "http.response.body", "body": b""})

    sent, _ = serve(identity, app)
    assert dict(sent[0]["headers"])[b"x-model-version"] == answered.encode()
    assert (requests(answered, "200"), requests(identity.version, "200")) == (1, None)
    assert (in_flight(answered), in_flight(identity.version)) == (0, 0)
