"""Routes, which answer OPTIONS, and what an application says about a path or a method that it does not have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from service.api.keys import Access

__all__ = ["Endpoint", "listed_paths"]


class Endpoint(Route):
    """A route to a handler, whose exceptions go to RequestMiddleware. `access`: who may use it.

    OPTIONS is answered with the methods of all routes of the path; so is any other method that none has, with a 405.
    """

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
            with scope["app"].keys.admit(scope, access):
                response = await handler(Request(scope, receive, send))
                await response(scope, receive, send)

        self.app = app

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for the path; raises HTTPException 405."""
        if scope["method"] in (self.methods or ()):
            await self.app(scope, receive, send)
            return
        allowed = {"Allow": ", ".join(sorted(_methods(scope)))}
        if scope["method"] != "OPTIONS":
            raise HTTPException(405, headers=allowed)
        await Response(status_code=204, headers=allowed)(scope, receive, send)


def _methods(scope: Scope) -> set[str]:
    """Return the methods of the path of a request, OPTIONS among them."""
    routes = [route for route in scope["app"].routes if isinstance(route, Endpoint)]
    return {"OPTIONS"}.union(*(route.methods or () for route in routes if route.matches(scope)[0] is not Match.NONE))


def listed_paths(routes: Iterable[BaseRoute]) -> list[str]:
    """Return the paths below /v1 without parameters, in order."""
    paths = {route.path for route in routes if isinstance(route, Endpoint)}
    return sorted(path for path in paths if path.startswith("/v1/") and "{" not in path)
