"""Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}` with the right status."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import TypedDict

__all__ = ["HANDLERS", "ApiError", "ErrorBody", "LastResort", "error_object", "invalid", "unexpected"]

log = logging.getLogger("service")

KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class Fault(TypedDict):
    """What is wrong: `param` names the field at fault, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of every answer that is a failure."""

    error: Fault


class ApiError(Exception):
    """A request that is answered with an error object; `param` names the field at fault, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """Make the error of a request that can never succeed as it is: 400."""
    return ApiError(400, message, param=param, code=code)


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> ErrorBody:
    """Put an error into OpenAI's shape."""
    kind = KINDS.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def unexpected(request_id: str) -> ErrorBody:
    """Put into OpenAI's shape what is our fault; the details are in the journal under the request's id."""
    return error_object(500, f"the server failed at this request ({request_id}); its journal says why")


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    document = error_object(error.status, str(error), error.param, error.code)
    return JSONResponse(document, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"no such page: {request.url.path[:200]}",
        405: f"{request.method[:20]} is not allowed here",
    }.get(error.status_code, error.detail)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    return JSONResponse(error_object(error.status_code, message, code=code), error.status_code, error.headers)


HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    ApiError: _api_error,
    HTTPException: _http_error,
}


class LastResort:
    """ASGI middleware: whatever nobody caught is logged once, with the request's id, and answered with a 500.

    Starlette's own handler for it stands outside of all middleware, where the answer would miss our headers, and
    raises the error again for the server to log a second time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, note)
        except ClientDisconnect:
            return  # nobody is left to be answered
        except Exception:
            if started:
                raise  # the server cuts the connection: the client must not take a part for the whole
            request_id = scope["state"]["request_id"]
            log.exception("request %s failed", request_id)
            await JSONResponse(unexpected(request_id), 500)(scope, receive, send)
