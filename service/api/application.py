"""Starlette with one place for errors, RequestMiddleware, in place of its wrappers around each route and around all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from service.api.keys import Access, ApiKeys
from service.api.middleware import RequestMiddleware
from service.identity import Identity

__all__ = ["Application", "Endpoint"]


class Endpoint(Route):
    """A route to a handler, whose exceptions go to RequestMiddleware. `access`: who may use it."""

    def __init__(
        self,
        path: str,
        handler: Callable[[Request], Awaitable[Response]],
        *,
        method: str = "GET",
        name: str | None = None,
        access: Access = "key",
    ) -> None:
        super().__init__(path, handler, methods=[method], name=name)
        self.access = access

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            application: Application = scope["app"]
            with application.keys.admit(scope, access):
                response = await handler(Request(scope, receive, send))
                await response(scope, receive, send)

        self.app = app


class Application(Starlette):
    """Starlette with RequestMiddleware in the place of its own two. By default no request needs an API key."""

    def __init__(
        self,
        routes: Sequence[Endpoint],
        identity: Identity,
        lifespan: Lifespan[Starlette],
        keys: ApiKeys | None = None,
    ) -> None:
        super().__init__(routes=routes, lifespan=lifespan)
        self.identity = identity
        self.keys = keys or ApiKeys()
        self.router.redirect_slashes = False

    def build_middleware_stack(self) -> ASGIApp:
        """Return the router within RequestMiddleware."""
        return RequestMiddleware(self.router, self.identity)
