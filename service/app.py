"""The HTTP service: its routes, and what every answer carries."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.handlers import Handlers
from service.api.openapi import OpenApi
from service.batches import Office
from service.chat.admission import Turnstile
from service.chat.errors import HANDLERS, LastResort
from service.chat.service import Chat
from service.engine import Engine
from service.identity import Identity
from service.metrics import Measure
from service.settings import Settings

__all__ = ["Identity", "create_app"]


def create_app(
    engine: Engine,
    identity: Identity,
    settings: Settings,
    *,
    serving: Callable[[], bool],
    turnstile: Turnstile | None = None,
) -> Starlette:
    """Make the ASGI application; `serving` tells whether the gate is open."""
    chat = Chat(engine, identity, settings, turnstile)
    handle = Handlers(chat, engine, identity, settings, serving)
    office = Office(chat, identity, settings, serving=serving)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with office.lifespan(app):
            yield
        await chat.close()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", handle.chat, methods=["POST"]),
            *office.routes,
            Route("/v1/models", handle.models),
            Route("/v1/models/{id:path}", handle.model),
            Route("/healthz", handle.healthz),
            Route("/readyz", handle.readyz),
            Route("/version", handle.version),
            Route("/metrics", handle.metrics),
            Route("/openapi.json", OpenApi(identity).serve, name="openapi"),
        ],
        middleware=[
            Middleware(Measure, identity),
            Middleware(Label, identity),
            Middleware(LastResort),
        ],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class Label:
    """ASGI middleware: every response says which version and slot it is from, and the request's id.

    Where weights answered, theirs is the version: the handler leaves it in `request.state.version`.

    A client's own X-Request-Id is kept when it is printable ASCII of at most 128 characters. Handlers find the id in
    `request.state.request_id`.
    """

    SANE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")

    def __init__(self, app: ASGIApp, identity: Identity) -> None:
        self.app = app
        self.identity = identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if self.SANE.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def label(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-model-version"] = state.get("version", self.identity.version)
                headers["x-slot"] = self.identity.slot
                headers["x-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, label)
