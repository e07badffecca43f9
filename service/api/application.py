"""Starlette with one place for errors, RequestMiddleware, in place of its wrappers around each route and around all."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.types import ASGIApp, Lifespan

from service.api.keys import ApiKeys
from service.api.middleware import RequestMiddleware
from service.api.routes import Endpoint
from service.identity import Identity

__all__ = ["Application"]


class Application(Starlette):
    """Starlette with RequestMiddleware in the place of its own two. By default no request needs an API key.

    `cors_origins`: the origins whose pages browsers let read the answers, as in RequestMiddleware.
    """

    def __init__(
        self,
        routes: Sequence[Endpoint],
        identity: Identity,
        lifespan: Lifespan[Starlette],
        cors_origins: Sequence[str] = (),
        keys: ApiKeys | None = None,
    ) -> None:
        super().__init__(routes=routes, lifespan=lifespan)
        self.identity = identity
        self.cors_origins = cors_origins
        self.keys = keys or ApiKeys()
        self.router.redirect_slashes = False

    def build_middleware_stack(self) -> ASGIApp:
        """Return the router within RequestMiddleware."""
        return RequestMiddleware(self.router, self.identity, self.cors_origins)
