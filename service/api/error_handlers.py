"""Starlette's exception handlers: ApiError and HTTPException become error objects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.chat.errors import ApiError, error_object

__all__ = ["EXCEPTION_HANDLERS"]


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    document = error_object(error.status, str(error), error.param, error.code)
    return JSONResponse(document, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"unknown URL: {request.url.path[:200]}",
        405: f"method {request.method[:20]} is not allowed for this URL",
    }.get(error.status_code, error.detail)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    return JSONResponse(error_object(error.status_code, message, code=code), error.status_code, error.headers)


EXCEPTION_HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    ApiError: _api_error,
    HTTPException: _http_error,
}
