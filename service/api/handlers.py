"""The handlers behind the routes of app.py."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Literal, NotRequired

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from service import metrics
from service.api.openapi import describes
from service.api.sse import EventStream, unless_gone
from service.chat import request as schema
from service.chat.errors import ApiError
from service.chat.response import Completion
from service.chat.service import Chat
from service.engine import Engine
from service.identity import Identity
from service.settings import Settings

__all__ = ["Handlers", "read_body"]

SMALL = 1 << 16  # bytes of a body that is read faster than a thread is begun


class Model(TypedDict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(TypedDict):
    """All models: one."""

    object: Literal["list"]
    data: list[Model]


class Health(TypedDict):
    """How the process is, and why it is not well."""

    status: Literal["alive", "hung", "ready", "not ready"]
    why: NotRequired[str]


class Who(TypedDict):
    """Who answers."""

    version: str
    slot: str
    generation: int
    model: str
    pid: int


class Handlers:
    """One method for each route."""

    def __init__(
        self, chat: Chat, engine: Engine, identity: Identity, settings: Settings, serving: Callable[[], bool]
    ) -> None:
        self._chat = chat
        self._engine = engine
        self._identity = identity
        self._settings = settings
        self._serving = serving
        self._since = int(time.time())

    @describes(body=schema.ChatRequest, answer=Completion, events=True, errors=(400, 413, 415, 429, 500))
    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions, as OpenAI has it."""
        body = await read_body(request, self._settings.max_body)
        # megabytes take a while, and meanwhile others are to be answered
        asked = await asyncio.to_thread(schema.parse, body) if len(body) > SMALL else schema.parse(body)
        request.state.greedy = asked.temperature == 0  # for the mirror: whether the same model says the same

        def tell(version: str) -> None:
            request.state.version = version

        if not asked.stream:
            return JSONResponse(await unless_gone(request.receive, self._chat.answer(asked, tell=tell)))
        # The first piece is awaited before the status is sent, so that what cannot be answered gets an error's status.
        events = self._chat.events(asked, request.state.request_id, tell)
        return EventStream(await unless_gone(request.receive, anext(events)), events)

    @describes(answer=Models)
    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        models: Models = {"object": "list", "data": [self._model()]}
        return JSONResponse(models)

    @describes(answer=Model, errors=(404,))
    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        name = request.path_params["id"]
        if name != self._settings.served_model:
            raise ApiError(404, f"no such model: {name[:200]}", param="model", code="model_not_found")
        return JSONResponse(self._model())

    @describes(answer=Health, unwell=Health)
    async def healthz(self, _request: Request) -> Response:
        """GET /healthz: whether the process should live."""
        if not self._engine.answering():
            return _health({"status": "hung", "why": self._hung()})
        return _health({"status": "alive"})

    @describes(answer=Health, unwell=Health)
    async def readyz(self, _request: Request) -> Response:
        """GET /readyz: whether clients should be sent here."""
        if not self._engine.answering():
            return _health({"status": "not ready", "why": self._hung()})
        if not self._serving():
            return _health({"status": "not ready", "why": "the gate is closed"})
        return _health({"status": "ready"})

    @describes(answer=Who)
    async def version(self, _request: Request) -> Response:
        """GET /version: who answers."""
        who = self._identity
        document: Who = {
            "version": who.version,
            "slot": who.slot,
            "generation": who.generation,
            "model": self._settings.served_model,
            "pid": os.getpid(),
        }
        return JSONResponse(document)

    @describes(answer={"type": "string"}, answer_type="text/plain")
    async def metrics(self, _request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(await asyncio.to_thread(metrics.render), headers={"content-type": metrics.CONTENT_TYPE})

    def _model(self) -> Model:
        return {"id": self._settings.served_model, "object": "model", "created": self._since, "owned_by": "zai-org"}

    def _hung(self) -> str:
        return f"the engine has work and has given no sign for {self._settings.stall} s"


def _health(health: Health) -> Response:
    return JSONResponse(health, 503 if "why" in health else 200)


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body, never more than `limit` bytes of it; raises ApiError 413 and 415."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, f"the content type must be application/json, not {kind[:100]}", code="unsupported_media_type"
        )
    # What is left of the body will not be read, so nothing can follow it on this connection.
    too_large = ApiError(
        413, f"the body is larger than {limit} bytes", code="too_large", headers={"Connection": "close"}
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)
