"""The ASGI application: its routes, middleware and lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from service.api.application import Application
from service.api.handlers import Handlers
from service.api.keys import ApiKeys
from service.api.openapi import OpenApi
from service.api.routes import Endpoint
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
    keys: ApiKeys | None = None,
) -> Starlette:
    """Return the application; `serving` returns whether the gate is open.

    Without `keys` they are those of the settings; raises KeysError.
    """
    chat = ChatService(engine, identity, settings, admission)
    handlers = Handlers(chat, engine, identity, settings, serving)
    batches = BatchService(chat, identity, settings, serving=serving)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with batches.lifespan(app):
            yield
        await chat.close()

    routes = [
        Endpoint("/healthz", handlers.healthz, access="open"),  # Starlette compares them in this order
        Endpoint("/health", handlers.healthz, name="health", access="open"),
        Endpoint("/readyz", handlers.readyz, access="open"),
        Endpoint("/v1/chat/completions", handlers.chat, method="POST"),
        Endpoint("/v1/responses", handlers.responses, method="POST"),
        Endpoint("/v1/completions", handlers.completions, method="POST"),
        Endpoint("/version", handlers.version, access="open"),
        Endpoint("/v1/models", handlers.models),
        Endpoint("/v1/models/{id:path}", handlers.model),
        *batches.routes,
        Endpoint("/metrics", handlers.metrics, access="metrics"),
        Endpoint("/openapi.json", OpenApi(identity).serve, name="openapi", access="open"),
    ]
    return Application(routes, identity, lifespan, settings.cors_origins, keys or ApiKeys.of(settings))
