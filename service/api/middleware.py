"""The ASGI middleware around the whole application: response headers, metrics and the response to unhandled errors."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.chat.errors import unexpected
from service.identity import Identity
from service.metrics import Metrics

__all__ = ["RequestMiddleware"]

log = logging.getLogger("service")

CLIENT_CLOSED_REQUEST = "499"  # nginx's status for a client that disconnected before its response was complete
INTERNAL_ROUTE = "internal"
VALID_REQUEST_ID = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")  # printable, at most 128 characters


class RequestMiddleware:
    """Labels, counts and times every HTTP request, and answers unhandled exceptions with a 500.

    Every response carries X-Model-Version, X-Slot and X-Request-Id. The version is that of the weights that produced
    the response, if the handler stored it in `request.state.version`, otherwise the current one. Handlers find the
    request's id in `request.state.request_id`; a valid X-Request-Id of the client is kept.

    Requests are counted under the template of their route, never under their path, which clients choose freely. Those
    through the slot's internal socket (`request.state.internal`: checks and mirrored requests) are counted under
    INTERNAL_ROUTE.

    Unhandled exceptions are caught here because Starlette's own handler runs outside all middleware: its response would
    lack the headers, and it raises the exception again, so that the server logs it a second time.
    """

    def __init__(self, app: ASGIApp, identity: Identity) -> None:
        self.app = app
        self.identity = identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        state = scope.setdefault("state", {})
        request_id = state["request_id"] = _request_id(scope)
        metrics = Metrics(self.identity.version, self.identity.slot)
        status: int | None = None  # of the response, once it has started
        complete = False

        async def send_labelled(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-model-version"] = state.get("version", self.identity.version)
                headers["x-slot"] = self.identity.slot
                headers["x-request-id"] = request_id
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        metrics.request_started()
        failed = False
        try:
            await self.app(scope, receive, send_labelled)
        except ClientDisconnect:
            pass  # counted as 499, since the response is not complete
        except Exception:
            failed = True
            if status is not None:
                raise  # the server closes the connection, so that the client does not take the response for complete
            log.exception("request %s failed", request_id)
            await JSONResponse(unexpected(request_id), 500)(scope, receive, send_labelled)
        finally:
            route = INTERNAL_ROUTE if state.get("internal") else getattr(scope.get("route"), "path", "other")
            outcome = "500" if failed else str(status) if complete else CLIENT_CLOSED_REQUEST
            metrics = metrics.move_request(state.get("version", metrics.version))
            metrics.request_ended(route, outcome, time.monotonic() - began)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if VALID_REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
