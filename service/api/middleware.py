"""The ASGI middleware around the whole application: response headers, unhandled errors, the log of refusals."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.error_responses import error_kind, error_response, reason_of
from service.chat.errors import ApiError, unexpected
from service.identity import Identity
from service.refusals import RefusalLog
from service.timing import Headers, ResponseTimer

__all__ = ["RequestMiddleware"]

log = logging.getLogger("service")

VALID_REQUEST_ID = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")  # printable, at most 128 characters


class RequestMiddleware:
    """Labels every response, and answers unhandled exceptions with a 500.

    Every response carries X-Model-Version, X-Slot and X-Request-Id. The version is that of the weights that produced
    the response, if the handler stored it in `request.state.version`, otherwise the current one. A handler stores None
    for a stream whose head may be sent before its version is known: such a head has no X-Model-Version. Handlers find
    the request's id in `request.state.request_id`; a valid X-Request-Id of the client is kept.

    Unhandled exceptions are caught here because Starlette's own handler runs outside all middleware: its response would
    lack the headers, and it raises the exception again, so that the server logs it a second time.

    With `cors_origins`, browsers may let the pages of these origins read all answers, errors too.

    The reason of an error and its kind are left in the request's state for the server's access log and metrics; also
    those of a stream that ends with an error in `request.state.late_error`, since its head was sent before. If the
    server has no access log, requests that are answered with 400 to 499 are logged here; see RefusalLog.
    """

    def __init__(self, app: ASGIApp, identity: Identity, cors_origins: Sequence[str] = ()) -> None:
        self._with_cors: Callable[[ASGIApp], ASGIApp] | None = None
        if cors_origins:
            self._with_cors = partial(
                CORSMiddleware,
                allow_origins=cors_origins,
                allow_methods=("GET", "HEAD", "POST", "DELETE"),
                allow_headers=("*",),
                expose_headers=("X-Model-Version", "X-Slot", "X-Request-Id", "Retry-After"),
            )
        self.app = self._with_cors(app) if self._with_cors else app
        self.identity = identity
        self._ids = _request_ids()
        self._refusals = RefusalLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        timer: ResponseTimer | None = state.get("timer")
        if timer is None:  # another server than ours
            timer = ResponseTimer(scope, receive, send)
            receive, send = timer.receive, timer.send
        request_id = state["request_id"] = _given_id(scope) or next(self._ids)
        timer.labels = partial(self._labels, state)
        try:
            await self.app(scope, receive, send)
            if late := state.pop("late_error", None):
                status = late.status if isinstance(late, ApiError) else 500
                self._note(scope, status, late)
        except ClientDisconnect:
            pass
        except Exception as error:
            if timer.status is not None:
                raise  # the server closes the connection, so that the client does not take the response for complete
            if state.get("version") is None:
                state.pop("version", None)  # no weights were used: the current version answers
            response = error_response(error, scope)
            if response is None:
                log.exception("request %s failed", request_id, extra={"request_id": request_id})
                response = JSONResponse(unexpected(request_id), 500)
            self._note(scope, response.status_code, error)
            await (self._with_cors(response) if self._with_cors else response)(scope, receive, send)

    def _note(self, scope: Scope, status: int, error: Exception) -> None:
        """Note an error for the access log and the metrics; without an access log a refusal is logged here."""
        state = scope["state"]
        state["error"], state["reason"] = error_kind(error), reason_of(error)
        if status >= 500 or state.get("is_logged"):
            return
        address = scope["client"][0] if scope.get("client") else ""
        path = scope.get("raw_path") or scope["path"].encode()
        self._refusals.add(address, scope["method"], path.decode("latin-1"), status, state["reason"])

    def _labels(self, state: dict[str, Any]) -> Headers:
        version: str | None = state.get("version", self.identity.version)
        labels = [(b"x-slot", self.identity.slot.encode()), (b"x-request-id", state["request_id"].encode())]
        return labels if version is None else [(b"x-model-version", version.encode()), *labels]


def _given_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            return given if VALID_REQUEST_ID.fullmatch(given) else None
    return None


def _request_ids() -> Iterator[str]:
    """Yield ids that no other process yields: random digits of this one, and a number. A uuid4 each costs 2 µs."""
    prefix = os.urandom(8).hex()
    return (f"req-{prefix}{number:016x}" for number in itertools.count())
