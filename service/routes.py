"""The handlers behind the routes of app.py."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service import images, metrics, schema
from service.completion import Head, Item, pieces, whole
from service.engine import Engine, Finish, PromptTooLong, Sampling
from service.errors import ApiError, invalid
from service.metrics import Metrics
from service.settings import Settings

__all__ = ["Handlers", "Identity"]

T = TypeVar("T")

DECODING = 4  # requests whose images are decoded at the same time: each may take hundreds of megabytes meanwhile


@dataclass(frozen=True)
class Identity:
    """Who answers: the release's version, the slot, and the number of the generation in it."""

    version: str
    slot: str
    generation: int


class Handlers:
    """One method for each route."""

    def __init__(self, engine: Engine, identity: Identity, settings: Settings, serving: Callable[[], bool]) -> None:
        self._engine = engine
        self._identity = identity
        self._settings = settings
        self._serving = serving
        self._metrics = Metrics(identity.version, identity.slot)
        self._decoding = asyncio.Semaphore(DECODING)
        self._waiting = 0  # requests that the engine has not begun to answer
        self._since = int(time.time())

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions, as OpenAI has it.

        Any `model` is accepted: a host serves one, and the answer says its name. Image URLs are not fetched.
        """
        asked, messages = await self._read(request)
        items = self._answer(asked, messages)
        head = Head(
            f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self._settings.served_model, self._identity.version
        )
        if not asked.stream:
            return JSONResponse(await _unless_gone(request.receive, whole(items, head)))
        # The first piece is awaited before the status is sent, so that what cannot be answered gets an error's status.
        first = await _unless_gone(request.receive, anext(items))
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return _EventStream(pieces(first, items, head, usage, request.state.request_id))

    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        name = request.path_params["id"]
        if name != self._settings.served_model:
            raise ApiError(404, f"no such model: {name[:200]}", param="model", code="model_not_found")
        return JSONResponse(self._model())

    async def healthz(self, _request: Request) -> Response:
        """GET /healthz: whether the process should live."""
        if not self._engine.answering():
            return JSONResponse({"status": "hung", "why": self._hung()}, 503)
        return JSONResponse({"status": "alive"})

    async def readyz(self, _request: Request) -> Response:
        """GET /readyz: whether clients should be sent here."""
        if not self._engine.answering():
            return JSONResponse({"status": "not ready", "why": self._hung()}, 503)
        if not self._serving():
            return JSONResponse({"status": "not ready", "why": "the gate is closed"}, 503)
        return JSONResponse({"status": "ready"})

    async def version(self, _request: Request) -> Response:
        """GET /version: who answers."""
        who = self._identity
        return JSONResponse(
            {
                "version": who.version,
                "slot": who.slot,
                "generation": who.generation,
                "model": self._settings.served_model,
                "pid": os.getpid(),
            }
        )

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(await asyncio.to_thread(metrics.render), headers={"content-type": metrics.CONTENT_TYPE})

    def _model(self) -> dict[str, Any]:
        return {"id": self._settings.served_model, "object": "model", "created": self._since, "owned_by": "zai-org"}

    def _hung(self) -> str:
        return f"the engine has work and has given no sign for {self._settings.stall} s"

    async def _read(self, request: Request) -> tuple[schema.ChatRequest, list[dict[str, Any]]]:
        """Read and check the request as far as that goes without the engine, in a thread: megabytes take a while."""
        body = await _body(request, self._settings.max_body)
        asked = await asyncio.to_thread(schema.parse, body)
        if not asked.images:
            return asked, _messages(asked, self._settings)
        async with self._decoding:
            return asked, await asyncio.to_thread(_messages, asked, self._settings)

    async def _answer(self, asked: schema.ChatRequest, messages: list[dict[str, Any]]) -> AsyncGenerator[Item, None]:
        """Stream from the engine, in its queue first; raises ApiError."""
        if self._waiting >= self._settings.max_queue:
            raise ApiError(
                429,
                f"{self._waiting} requests are waiting already; try again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        thinking = asked.chat_template_kwargs.enable_thinking if asked.chat_template_kwargs else None
        began, waiting = time.monotonic(), True
        self._waiting += 1
        try:
            # engines are async generators, whatever the least that their Protocol asks for
            stream = cast(
                "AsyncGenerator[Item, None]", self._engine.stream(messages, _sampling(asked), thinking=thinking)
            )
            async with aclosing(stream):
                async for item in stream:
                    if waiting:
                        waiting = False
                        self._waiting -= 1
                        self._metrics.first_token(time.monotonic() - began)
                    if isinstance(item, Finish):
                        self._metrics.tokens(item.completion_tokens)
                    yield item
        except PromptTooLong as error:
            raise invalid(str(error), param="messages", code="context_length_exceeded") from error
        finally:
            self._waiting -= waiting


class _EventStream(Response):
    """Server-sent events that stop, engine and all, as soon as the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self.events = events
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await _unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async with aclosing(self.events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`, and cancel it when the client leaves; raises ClientDisconnect then. The body must have been read."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _body(request: Request, limit: int) -> bytes:
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


def _sampling(asked: schema.ChatRequest) -> Sampling:
    return Sampling(
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.seed,
        stop=tuple(asked.stop or ()),
    )


def _messages(asked: schema.ChatRequest, settings: Settings) -> list[dict[str, Any]]:
    """Put the conversation into the engine's shape, images decoded; raises ApiError."""
    if len(asked.images) > settings.max_images:
        raise invalid(f"{len(asked.images)} images; at most {settings.max_images} are allowed", param="messages")
    messages: list[dict[str, Any]] = []
    for number, message in enumerate(asked.messages):
        parts: list[dict[str, Any]] = []
        for place, part in enumerate(message.content or ()):
            if isinstance(part, schema.TextPart):
                parts.append({"type": "text", "text": part.text})
                continue
            try:
                image = images.from_data_url(part.image_url.url, max_pixels=settings.max_pixels)
            except images.ImageError as error:
                where = f"messages[{number}].content[{place}].image_url"
                raise invalid(f"{where}: {error}", param=where, code="invalid_image") from error
            parts.append({"type": "image", "image": image})
        # Templates differ in which roles may have parts; a string they all take.
        plain = "".join(part["text"] for part in parts) if all("text" in part for part in parts) else None
        role = "system" if message.role == "developer" else message.role
        messages.append({"role": role, "content": parts if plain is None else plain})
    return messages
