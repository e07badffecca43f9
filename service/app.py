"""The ASGI application: its routes, middleware and lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from service.api.error_handlers import EXCEPTION_HANDLERS
from service.api.handlers import Handlers
from service.api.middleware import RequestMiddleware
from service.api.openapi import OpenApi
from service.batches import BatchService
from service.chat.admission import Admission
from service.chat.service import ChatService
from service.engine import Engine
from service.identity import Identity
from service.settings import Settings

__all__ = ["create_app"]


def create_app(
    engine: Engine,
    identity: Identity,
    settings: Settings,
    *,
    serving: Callable[[], bool],
    admission: Admission | None = None,
) -> Starlette:
    """Return the application; `serving` returns whether the gate is open."""
    chat = ChatService(engine, identity, settings, admission)
    handlers = Handlers(chat, engine, identity, settings, serving)
    batches = BatchService(chat, identity, settings, serving=serving)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with batches.lifespan(app):
            yield
        await chat.close()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", handlers.chat, methods=["POST"]),
            *batches.routes,
            Route("/v1/models", handlers.models),
            Route("/v1/models/{id:path}", handlers.model),
            Route("/healthz", handlers.healthz),
            Route("/readyz", handlers.readyz),
            Route("/version", handlers.version),
            Route("/metrics", handlers.metrics),
            Route("/openapi.json", OpenApi(identity).serve, name="openapi"),
        ],
        middleware=[Middleware(RequestMiddleware, identity)],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app
