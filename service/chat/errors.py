"""Error objects in OpenAI's format: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from typing_extensions import TypedDict

__all__ = ["ApiError", "ErrorBody", "error_object", "error_type", "invalid", "log_late", "unexpected"]

log = logging.getLogger("service")

ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ErrorDetail(TypedDict):
    """`param` names the field at fault, `code` identifies the error to programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of an error response."""

    error: ErrorDetail


class ApiError(Exception):
    """An error that is returned to the client with this HTTP status, as an error object.

    `param` names the field at fault, `code` identifies the error to programs, `headers` are added to the response.
    """

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
    """Return a 400, for a request that cannot succeed unchanged."""
    return ApiError(400, message, param=param, code=code)


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> ErrorBody:
    """Return the body of an error response; `type` follows from the status."""
    return {"error": {"message": message, "type": error_type(status), "param": param, "code": code}}


def error_type(status: int) -> str:
    """Return the type of an error by its status."""
    return ERROR_TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")


def unexpected(request_id: str) -> ErrorBody:
    """Return the body of a 500. It contains no details; the server logs them with the request's id."""
    return error_object(500, f"internal server error; the server's log has the details of request {request_id}")


def log_late(error: Exception, request_id: str) -> None:
    """Log an unexpected error that ends a stream whose head was sent before."""
    extra = {"request_id": request_id}
    log.error("request %s failed while its response was streamed", request_id, exc_info=error, extra=extra)
