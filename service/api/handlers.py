"""The route handlers of chat, models, health, version and metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal, NotRequired

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from service import metrics
from service.api.body import read_body
from service.api.keys import InFlight
from service.api.openapi import describes
from service.api.scrapes import Scrapes
from service.api.sse import EventStream, cancel_on_disconnect
from service.chat.engine_request import ClientRequest
from service.chat.errors import ApiError
from service.chat.request import ChatRequest
from service.chat.response import Completion
from service.chat.service import ChatService
from service.completions.request import CompletionRequest
from service.completions.response import TextCompletion
from service.engine import Engine, Finish
from service.fairness.budget import Budget
from service.fairness.client import Client
from service.identity import Identity
from service.responses.request import ResponsesRequest
from service.responses.response import Response as ResponsesResponse
from service.settings import Settings
from service.timing import AnswerTimes

__all__ = ["Handlers"]


class Model(TypedDict):
    """A served model; `max_model_len` is the most tokens of a prompt and its answer together."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class Models(TypedDict):
    """The served models, of which there is one."""

    object: Literal["list"]
    data: list[Model]


class Health(TypedDict):
    """The state of the process; `why` gives the reason for a 503."""

    status: Literal["alive", "hung", "ready", "not ready"]
    why: NotRequired[str]


class VersionInfo(TypedDict):
    """The release and process that answered."""

    version: str
    slot: str
    generation: int
    model: str
    pid: int


class Handlers:
    """The handlers, one method for each route."""

    def __init__(
        self, chat: ChatService, engine: Engine, identity: Identity, settings: Settings, serving: Callable[[], bool]
    ) -> None:
        self._chat = chat
        self._engine = engine
        self._identity = identity
        self._settings = settings
        self._serving = serving
        self._bodies = Budget.shared(settings.max_bodies, settings.client_share)
        self._scrapes = Scrapes()
        self._created = int(time.time())

    @describes(body=ChatRequest, response=Completion, events=True, errors=(400, 413, 415, 429, 500))
    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions, compatible with OpenAI's API."""
        return await self._answer(request, ChatRequest)

    @describes(body=ResponsesRequest, response=ResponsesResponse, events=True, errors=(400, 413, 415, 429, 500))
    async def responses(self, request: Request) -> Response:
        """POST /v1/responses, compatible with OpenAI's API, but stateless: nothing is stored."""
        return await self._answer(request, ResponsesRequest)

    @describes(body=CompletionRequest, response=TextCompletion, events=True, errors=(400, 413, 415, 429, 500))
    async def completions(self, request: Request) -> Response:
        """POST /v1/completions, compatible with OpenAI's API: the text of a prompt, without the chat template."""
        return await self._answer(request, CompletionRequest)

    async def _answer(self, request: Request, kind: type[ClientRequest]) -> Response:
        client = Client.of(request.scope)
        with ExitStack() as holdings:
            holding = self._bodies.take(client, 0)
            holdings.callback(holding.give_back)
            body = await read_body(request, self._settings.max_body, holding)
            asked = await self._chat.parse(body, client, kind)
            del body
            request.state.greedy = asked.is_greedy  # read by the mirror: only greedy texts are comparable
            if asked.stream:
                return self._stream(request, asked, client, holdings.pop_all())
            completion = self._chat.create_completion(
                asked,
                on_version=_version_setter(request),
                client=client,
                on_size=_size_setter(request),
                on_finish=_finish_recorder(request),
            )
            return JSONResponse(await cancel_on_disconnect(request.receive, completion))

    def _stream(self, request: Request, asked: ClientRequest, client: Client, holdings: ExitStack) -> Response:
        """Return the stream; it gives `holdings` back with its first event, when the engine has images and texts."""
        request_id: str = request.state.request_id
        request.state.version = None  # until the request is admitted
        answer = asked.answer_format()

        def encode_error(error: Exception) -> bytes:
            request.state.late_error = error
            if timer := request.scope["state"].get("timer"):
                timer.status = error.status if isinstance(error, ApiError) else 500  # as if the head had waited
            return answer.encode_error(error, request_id)

        # No proxy is before the internal socket, and the mirror compares the statuses of what it asks there.
        return EventStream(
            self._chat.stream_events(
                asked, request_id, _version_setter(request), client, _size_setter(request), _finish_recorder(request)
            ),
            encode_error,
            max_silence=None if _is_internal(request) else self._settings.keep_alive_comment,
            before_first=holdings,
        )

    @describes(response=Models)
    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        models: Models = {"object": "list", "data": [self._model()]}
        return JSONResponse(models)

    @describes(response=Model, errors=(404,))
    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        name = request.path_params["id"]
        if name != self._settings.served_model:
            message = f"no such model: {name[:200]}; {self._settings.served_model} is served here"
            raise ApiError(404, message, param="model", code="model_not_found")
        return JSONResponse(self._model())

    @describes(response=Health, unavailable=Health)
    async def healthz(self, _request: Request) -> Response:
        """GET /healthz: whether the process works."""
        if not self._engine.answering():
            return _health({"status": "hung", "why": self._hung()})
        return _health({"status": "alive"})

    @describes(response=Health, unavailable=Health)
    async def readyz(self, request: Request) -> Response:
        """GET /readyz: whether clients are served; on the slot's internal socket, whether by this process.

        The gate lets a client's request in before the handler runs, and may close meanwhile; a canary's share is
        answered while it is closed.
        """
        if not self._engine.answering():
            return _health({"status": "not ready", "why": self._hung()})
        if _is_internal(request) and not self._serving():
            return _health({"status": "not ready", "why": "the gate is closed"})
        return _health({"status": "ready"})

    @describes(response=VersionInfo)
    async def version(self, _request: Request) -> Response:
        """GET /version: the release and process that answered."""
        identity = self._identity
        document: VersionInfo = {
            "version": identity.version,
            "slot": identity.slot,
            "generation": identity.generation,
            "model": self._settings.served_model,
            "pid": os.getpid(),
        }
        return JSONResponse(document)

    @describes(response={"type": "string"}, response_type="text/plain")
    async def metrics(self, _request: Request) -> Response:
        """GET /metrics, in Prometheus' text format."""
        return Response(await self._scrapes.take(), headers={"content-type": metrics.CONTENT_TYPE})

    def _model(self) -> Model:
        return {
            "id": self._settings.served_model,
            "object": "model",
            "created": self._created,
            "owned_by": "zai-org",
            "max_model_len": self._engine.context_length,
        }

    def _hung(self) -> str:
        return f"the engine has work and has made no progress for {self._settings.stall} s"


def _is_internal(request: Request) -> bool:
    """Return whether the request came by the slot's internal socket, and not from a client."""
    return bool(request.scope["state"].get("internal"))


def _version_setter(request: Request) -> Callable[[str], None]:
    def set_version(version: str) -> None:
        request.state.version = version

    return set_version


def _finish_recorder(request: Request) -> Callable[[Finish, AnswerTimes], None]:
    """Keep tokens and times of the request's choices in its state, for its line and trace: prompt tokens once."""

    def add(finish: Finish, times: AnswerTimes) -> None:
        _, completion = getattr(request.state, "tokens", (0, 0))
        request.state.tokens = finish.prompt_tokens, completion + finish.completion_tokens
        request.state.times = times.merge(getattr(request.state, "times", None))

    return add


def _size_setter(request: Request) -> Callable[[int], None]:
    in_flight: InFlight | None = request.scope["state"].get("in_flight")
    return in_flight.add_tokens if in_flight else lambda _tokens: None


def _health(health: Health) -> Response:
    return JSONResponse(health, 503 if "why" in health else 200)
