"""The chat service: validated requests go to the engine, its output becomes a completion or events."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

from service.chat.admission import Admission, Ticket
from service.chat.errors import ApiError, invalid
from service.chat.image_fetcher import ImageFetcher
from service.chat.output_parser import OutputParser
from service.chat.prompt_messages import Conversation, PromptMessages
from service.chat.request import ChatRequest
from service.chat.request_parser import RequestParser
from service.chat.reservation import Reservation
from service.chat.response import Completion, Item, ResponseHead, collect_completion, encode_events
from service.chat.stream_merge import merge_streams
from service.engine import Engine, Finish, Priority, PromptTooLong, QueueTimeout, Refused, Sampling
from service.fairness.budget import Budget, Exhausted, Holding
from service.fairness.client import BATCHES, NOBODY, Client
from service.identity import Identity
from service.metrics import Metrics
from service.settings import Settings

__all__ = ["ChatService"]


def _ignore(_value: object) -> None:
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
        self._parser = RequestParser(settings)
        self._queue = Budget.shared(settings.max_queue, settings.client_share)  # answers that have not begun
        self._pixels = Budget.shared(settings.max_open_pixels, settings.client_share)

    async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
        """Answer a request given as a JSON object with a `chat.completion`; streaming is not supported."""
        request = await self._parser.parse_document(document)
        if request.stream:
            raise invalid("stream must be false: streaming is not supported in a batch", param="stream")
        return dict(await self.create_completion(request, priority, client=BATCHES))

    async def parse(self, body: bytes | bytearray, client: Client) -> ChatRequest:
        """Parse and validate a request body."""
        return await self._parser.parse(body, client)

    async def create_completion(
        self,
        request: ChatRequest,
        priority: Priority = "interactive",
        on_version: Callable[[str], None] = _ignore,
        client: Client = NOBODY,
        on_size: Callable[[int], None] = _ignore,
    ) -> Completion:
        """Answer with a `chat.completion`; `on_version` receives the version of the weights before they are used.

        `on_size` receives the tokens that all choices may take, prompts and answers, by an estimate and before any work
        on them; it may raise ApiError.
        """
        with self._reserve(request, priority, client) as reservation:
            conversation = await self._prepare(request, reservation, client, on_size)
            request, parsers = request.without_messages(), self._parsers(request, conversation.tools)
            async with self._admission.admit(request.n or 1) as ticket:
                on_version(ticket.version)
                items = merge_streams(self._streams(request, conversation, priority, ticket, reservation, client))
                del conversation
                return await collect_completion(items, parsers, self._head(ticket.version))

    async def stream_events(
        self,
        request: ChatRequest,
        request_id: str,
        on_version: Callable[[str], None] = _ignore,
        client: Client = NOBODY,
        on_size: Callable[[int], None] = _ignore,
    ) -> AsyncGenerator[bytes, None]:
        """Answer with server-sent events. ApiError is raised before the first event only; later errors are events."""
        include_usage = bool(request.stream_options and request.stream_options.include_usage)
        with self._reserve(request, "interactive", client) as reservation:
            conversation = await self._prepare(request, reservation, client, on_size)
            request, parsers = request.without_messages(), self._parsers(request, conversation.tools)
            async with self._admission.admit(request.n or 1) as ticket:
                on_version(ticket.version)
                streams = self._streams(request, conversation, "interactive", ticket, reservation, client)
                del conversation
                async with aclosing(merge_streams(streams)) as items:
                    first = await anext(items)
                    head = self._head(ticket.version)
                    encoded = encode_events(first, items, parsers, head, request_id, usage=include_usage)
                    async with aclosing(encoded) as events:
                        async for event in events:
                            yield event

    async def close(self) -> None:
        """Close the idle connections to image hosts, and end the processes that parse and decode."""
        self._parser.close()
        await self._prompt_messages.close()
        await self._fetcher.close()

    def _head(self, version: str) -> ResponseHead:
        return ResponseHead(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self._settings.served_model, version)

    def _parsers(self, request: ChatRequest, tools: list[dict[str, Any]]) -> list[OutputParser]:
        thinking = request.thinking is not False
        return [
            OutputParser(
                thinking=thinking,
                boxes=self._settings.boxes,
                tools=tools,
                parallel_calls=request.parallel_tool_calls is not False,
            )
            for _ in range(request.n or 1)
        ]

    @contextmanager
    def _reserve(self, request: ChatRequest, priority: Priority, client: Client) -> Iterator[Reservation]:
        """Take the request's places in the queue, before any work on it; raises ApiError."""
        answers = request.n or 1
        if answers > self._settings.max_choices:
            raise invalid(f"n must be at most {self._settings.max_choices}", param="n")
        reservation = Reservation(answers, self._take_places(client, answers) if priority == "interactive" else None)
        try:
            yield reservation
        finally:
            reservation.release()

    def _take_places(self, client: Client, answers: int) -> Holding:
        try:
            return self._queue.take(client, answers)
        except Exhausted as error:
            waiting = f"{self._queue.held} requests are waiting"
            raise ApiError(
                429,
                f"this address has its whole share of the queue, in which {waiting}; try again later"
                if error.by_client and self._queue.held < self._queue.total
                else f"the queue is full: {waiting}; try again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            ) from None

    async def _prepare(
        self, request: ChatRequest, reservation: Reservation, client: Client, on_size: Callable[[int], None]
    ) -> Conversation:
        """Return the conversation, with its images fetched and decoded as soon as their pixels have room."""
        conversation = await self._prompt_messages.build(request, client)
        try:
            tokens = self._engine.check_size(conversation.messages, conversation.tools)
        except PromptTooLong as error:
            raise invalid(str(error), param=error.param, code="context_length_exceeded") from error
        on_size((tokens + (_max_tokens(request) or self._engine.max_new_tokens)) * (request.n or 1))
        if conversation.pixels:
            try:
                async with asyncio.timeout(self._settings.max_wait if client != BATCHES else None):
                    reservation.hold_pixels(await self._pixels.wait(client, conversation.pixels))
            except TimeoutError:
                raise ApiError(
                    429,
                    f"the images of other requests had to be waited for, longer than {self._settings.max_wait:g} s",
                    code="queue_timeout",
                    headers={"Retry-After": "5"},
                ) from None
            await self._prompt_messages.decode(conversation, client)
        return conversation

    def _streams(
        self,
        request: ChatRequest,
        conversation: Conversation,
        priority: Priority,
        ticket: Ticket,
        reservation: Reservation,
        client: Client,
    ) -> list[AsyncGenerator[Item, None]]:
        """Return one stream for each of the `n` choices; none has started."""

        def started() -> None:
            ticket.started()
            reservation.started()

        return [
            self._stream(
                self._engine.stream(
                    conversation.messages,
                    _sampling(request, index),
                    thinking=request.thinking,
                    tools=conversation.tools,
                    priority=priority,
                    client=client,
                ),
                started,
                ticket.version,
            )
            for index in range(request.n or 1)
        ]

    async def _stream(
        self, stream: AsyncIterator[Item], started: Callable[[], None], version: str
    ) -> AsyncGenerator[Item, None]:
        """Stream one choice from the engine; call `started` at its first item, and maintain the metrics."""
        metrics = Metrics(version, self._slot)
        began, waiting = time.monotonic(), True
        try:
            # The Engine protocol asks for an iterator only, but every engine is an async generator.
            async with aclosing(cast("AsyncGenerator[Item, None]", stream)):
                async for item in stream:
                    if waiting:
                        waiting = False
                        started()
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
            metrics.set_engine_usage(self._engine.usage())


def _max_tokens(request: ChatRequest) -> int | None:
    return request.max_completion_tokens or request.max_tokens


def _sampling(request: ChatRequest, index: int) -> Sampling:
    """Return the sampling of one of the `n` choices; with a seed, every choice has a different one derived from it."""
    seed = request.seed if request.seed is None else (request.seed + index + 2**63) % 2**64 - 2**63
    return Sampling(
        max_tokens=_max_tokens(request),
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
        grammar=request.grammar,
    )
