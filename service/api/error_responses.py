"""The responses to ApiError and HTTPException: error objects."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from service.api.routes import listed_paths
from service.chat.errors import ApiError, error_object, error_type

__all__ = ["error_kind", "error_response", "reason_of"]


_CODES = {404: "unknown_url", 405: "method_not_allowed"}


def error_kind(error: Exception) -> str:
    """Return the error's code, or its type if it has none; one of a fixed set."""
    if isinstance(error, ApiError):
        return error.code or error_type(error.status)
    if isinstance(error, HTTPException):
        return _CODES.get(error.status_code) or error_type(error.status_code)
    return "internal_error"


def reason_of(error: Exception) -> str:
    """Return the reason for a line of the log. An unexpected error is named only: its text may hold a client's."""
    if isinstance(error, ApiError | HTTPException):
        return str(getattr(error, "detail", error))
    return f"{type(error).__name__}; the log has its traceback"


def error_response(error: Exception, scope: Scope) -> Response | None:
    """Return the response to an error that a request may cause; None for any other."""
    if isinstance(error, ApiError):
        document = error_object(error.status, str(error), error.param, error.code)
        return JSONResponse(document, error.status, error.headers)
    if isinstance(error, HTTPException):
        message = {404: _unknown_url, 405: _wrong_method}.get(error.status_code, _detail)(error, scope)
        code = _CODES.get(error.status_code)
        return JSONResponse(error_object(error.status_code, message, code=code), error.status_code, error.headers)
    return None


def _unknown_url(_error: HTTPException, scope: Scope) -> str:
    paths = ", ".join(listed_paths(scope["app"].routes))
    return f"unknown URL: {scope['path'][:200]}; there are {paths}; GET /openapi.json describes all"


def _wrong_method(error: HTTPException, scope: Scope) -> str:
    allowed = (error.headers or {}).get("Allow", "")
    return f"method {scope['method'][:20]} is not allowed for this URL; allowed are {allowed}"


def _detail(error: HTTPException, _scope: Scope) -> str:
    return error.detail
