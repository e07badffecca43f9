"""The chat service: validated requests go to the engine, its output becomes a completion or events."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, cast

from service.chat.admission import Admission, Ticket
from service.chat.errors import ApiError, invalid
from service.chat.image_fetcher import ImageFetcher
from service.chat.output_parser import OutputParser
from service.chat.prompt_messages import PromptMessages
from service.chat.request import ChatRequest, parse_document
from service.chat.response import Completion, Item, ResponseHead, collect_completion, encode_events
from service.chat.stream_merge import merge_streams
from service.engine import Engine, Finish, Priority, PromptTooLong, QueueTimeout, Refused, Sampling
from service.fairness.client import BATCHES, NOBODY, Client
from service.identity import Identity
from service.metrics import Metrics
from service.settings import Settings

__all__ = ["ChatService"]


def _ignore_version(_version: str) -> None:
    pass


class ChatService:
    """Answers requests with one engine. Every method raises ApiError for errors to be returned to the client.

    The request's `model` is ignored: a host serves one model, which the response names. Cancelling the awaiting task,
    or closing the generator, frees the engine.
    """

    def __init__(
        self, engine: Engine, identity: Identity, settings: Settings, admission: Admission | None = None
    ) -> None:
        self._engine = engine
        self._slot = identity.slot
        self._settings = settings
        self._admission = admission or Admission(identity)
        self._fetcher = ImageFetcher(
            settings.image_hosts, timeout=settings.image_timeout, max_bytes=settings.max_image_bytes
        )
        self._prompt_messages = PromptMessages(settings, self._fetcher)
        self._queued = 0  # interactive answers that the engine has not started

    async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
        """Answer a request given as a JSON object with a `chat.completion`; streaming is not supported."""
        request = await asyncio.to_thread(parse_document, document)
        if request.stream:
            raise invalid("stream must be false: streaming is not supported in a batch", param="stream")
        return dict(await self.create_completion(request, priority, client=BATCHES))

    async def create_completion(
        self,
        request: ChatRequest,
        priority: Priority = "interactive",
        on_version: Callable[[str], None] = _ignore_version,
        client: Client = NOBODY,
    ) -> Completion:
        """Answer with a `chat.completion`; `on_version` receives the version of the weights before they are used."""
        messages = await self._build_messages(request, priority)
        async with self._admission.admit(request.n or 1) as ticket:
            on_version(ticket.version)
            items = merge_streams(self._streams(request, messages, priority, ticket, client))
            return await collect_completion(items, self._parsers(request), self._head(ticket.version))

    async def stream_events(
        self,
        request: ChatRequest,
        request_id: str,
        on_version: Callable[[str], None] = _ignore_version,
        client: Client = NOBODY,
    ) -> AsyncGenerator[bytes, None]:
        """Answer with server-sent events. ApiError is raised before the first event only; later errors are events."""
        include_usage = bool(request.stream_options and request.stream_options.include_usage)
        messages = await self._build_messages(request, "interactive")
        async with self._admission.admit(request.n or 1) as ticket:
            on_version(ticket.version)
            streams = self._streams(request, messages, "interactive", ticket, client)
            async with aclosing(merge_streams(streams)) as items:
                first = await anext(items)
                head = self._head(ticket.version)
                encoded = encode_events(first, items, self._parsers(request), head, request_id, usage=include_usage)
                async with aclosing(encoded) as events:
                    async for event in events:
                        yield event

    async def close(self) -> None:
        """Close the idle connections to image hosts."""
        await self._fetcher.close()

    def _head(self, version: str) -> ResponseHead:
        return ResponseHead(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self._settings.served_model, version)

    def _parsers(self, request: ChatRequest) -> list[OutputParser]:
        thinking, tools = request.thinking is not False, request.enabled_tools
        return [OutputParser(thinking=thinking, boxes=self._settings.boxes, tools=tools) for _ in range(request.n or 1)]

    async def _build_messages(self, request: ChatRequest, priority: Priority) -> list[dict[str, Any]]:
        """Return the engine's messages, with images fetched and decoded."""
        if (request.n or 1) > self._settings.max_choices:
            raise invalid(f"n must be at most {self._settings.max_choices}", param="n")
        interactive = priority == "interactive"
        if interactive:
            self._check_queue()  # before any image is fetched or decoded
        messages = await self._prompt_messages.build(request)
        if interactive:
            self._check_queue()
        return messages

    def _check_queue(self) -> None:
        waiting = self._queued + self._admission.waiting
        if waiting >= self._settings.max_queue:
            raise ApiError(
                429,
                f"the queue is full: {waiting} requests are waiting; try again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            )

    def _streams(
        self,
        request: ChatRequest,
        messages: list[dict[str, Any]],
        priority: Priority,
        ticket: Ticket,
        client: Client,
    ) -> list[AsyncGenerator[Item, None]]:
        """Return one stream for each of the `n` choices; none has started."""
        return [
            self._stream(request, messages, _sampling(request, index), priority, ticket, client)
            for index in range(request.n or 1)
        ]

    async def _stream(
        self,
        request: ChatRequest,
        messages: list[dict[str, Any]],
        sampling: Sampling,
        priority: Priority,
        ticket: Ticket,
        client: Client,
    ) -> AsyncGenerator[Item, None]:
        """Stream one choice from the engine, maintaining the queue's length, the ticket and the metrics."""
        interactive = priority == "interactive"
        metrics = Metrics(ticket.version, self._slot)
        began, queued = time.monotonic(), True
        self._queued += interactive
        try:
            # The Engine protocol asks for an iterator only, but every engine is an async generator.
            stream = cast(
                "AsyncGenerator[Item, None]",
                self._engine.stream(
                    messages,
                    sampling,
                    thinking=request.thinking,
                    tools=request.enabled_tools,
                    priority=priority,
                    client=client,
                ),
            )
            async with aclosing(stream):
                async for item in stream:
                    if queued:
                        queued = False
                        self._queued -= interactive
                        ticket.started()
                        metrics.observe_first_token(time.monotonic() - began)
                        metrics.set_engine_usage(self._engine.usage())
                    if isinstance(item, Finish):
                        metrics.count_tokens(item.completion_tokens)
                    yield item
        except PromptTooLong as error:
            raise invalid(str(error), param=error.param, code="context_length_exceeded") from error
        except Refused as error:
            raise invalid(str(error), param=error.param) from error
        except QueueTimeout as error:
            raise ApiError(429, str(error), code="queue_timeout", headers={"Retry-After": "5"}) from error
        finally:
            self._queued -= interactive and queued
            metrics.set_engine_usage(self._engine.usage())


def _sampling(request: ChatRequest, index: int) -> Sampling:
    """Return the sampling of one of the `n` choices; with a seed, every choice has a different one derived from it."""
    seed = request.seed if request.seed is None else (request.seed + index + 2**63) % 2**64 - 2**63
    return Sampling(
        max_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        seed=seed,
        stop=tuple(request.stop or ()),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        json_schema=request.json_schema,
    )
