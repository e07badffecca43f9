"""The chat service: validated requests go to the engine, its output becomes a completion or events."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar, cast

from service.chat.admission import Admission, Ticket
from service.chat.engine_request import ClientRequest, EngineRequest, ResponseHead
from service.chat.errors import ApiError, invalid
from service.chat.image_fetcher import ImageFetcher
from service.chat.output_parser import OutputParser
from service.chat.prompt_messages import Conversation, PromptMessages
from service.chat.request_parser import RequestParser
from service.chat.reservation import Reservation
from service.chat.stream_merge import merge_streams
from service.engine import Delta, Engine, Finish, Priority, PromptTooLong, QueueTimeout, Refused
from service.fairness.budget import Budget, Exhausted, Holding
from service.fairness.client import BATCHES, NOBODY, Client
from service.identity import Identity
from service.metrics import Metrics
from service.settings import Settings
from service.timing import AnswerTimes

__all__ = ["ChatService"]

R = TypeVar("R", bound=ClientRequest)
OnFinish = Callable[[Finish, AnswerTimes], None]


def _ignore(*_values: object) -> None:
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
        """Answer a chat request given as a JSON object with a `chat.completion`; streaming is not supported."""
        request = await self._parser.parse_document(document)
        if request.stream:
            raise invalid("stream must be false: streaming is not supported in a batch", param="stream")
        return dict(await self.create_completion(request, priority, client=BATCHES))

    async def parse(self, body: bytes | bytearray, client: Client, kind: type[R]) -> R:
        """Parse and validate the body of a request of this kind."""
        return await self._parser.parse(body, client, kind)

    async def create_completion(
        self,
        request: ClientRequest,
        priority: Priority = "interactive",
        on_version: Callable[[str], None] = _ignore,
        client: Client = NOBODY,
        on_size: Callable[[int], None] = _ignore,
        on_finish: OnFinish = _ignore,
    ) -> Mapping[str, Any]:
        """Return the whole response; `on_version` receives the version of the weights before they are used.

        `on_size` receives the tokens that all choices may take, prompts and answers, by an estimate and before any work
        on them; it may raise ApiError. `on_finish` receives the end of each choice, and when its parts began.
        """
        asked, answer = request.engine_request(), request.answer_format()
        del request
        with self._reserve(asked, priority, client) as reservation:
            conversation = await self._prepare(asked, reservation, client, on_size)
            asked, parsers = asked.without_messages(), self._parsers(asked)
            async with self._admission.admit(asked.choices) as ticket:
                on_version(ticket.version)
                items = merge_streams(
                    self._streams(asked, conversation, priority, ticket, reservation, client, on_finish)
                )
                del conversation
                return await answer.collect(items, parsers, self._head(ticket.version))

    async def stream_events(
        self,
        request: ClientRequest,
        request_id: str,
        on_version: Callable[[str], None] = _ignore,
        client: Client = NOBODY,
        on_size: Callable[[int], None] = _ignore,
        on_finish: OnFinish = _ignore,
    ) -> AsyncGenerator[bytes, None]:
        """Answer with server-sent events. ApiError is raised before the first event only; later errors are events."""
        asked, answer = request.engine_request(), request.answer_format()
        del request
        with self._reserve(asked, "interactive", client) as reservation:
            conversation = await self._prepare(asked, reservation, client, on_size)
            asked, parsers = asked.without_messages(), self._parsers(asked)
            async with self._admission.admit(asked.choices) as ticket:
                on_version(ticket.version)
                streams = self._streams(asked, conversation, "interactive", ticket, reservation, client, on_finish)
                del conversation
                async with aclosing(merge_streams(streams)) as items:
                    first = await anext(items)
                    encoded = answer.encode(first, items, parsers, self._head(ticket.version), request_id)
                    async with aclosing(encoded) as events:
                        async for event in events:
                            yield event

    async def close(self) -> None:
        """Close the idle connections to image hosts, and end the processes that parse and decode."""
        self._parser.close()
        await self._prompt_messages.close()
        await self._fetcher.close()

    def _head(self, version: str) -> ResponseHead:
        return ResponseHead(uuid.uuid4().hex, int(time.time()), self._settings.served_model, version)

    def _parsers(self, asked: EngineRequest) -> list[OutputParser]:
        return [
            OutputParser(
                thinking=asked.thinking is not False,
                boxes=self._settings.boxes,
                tools=asked.tools,
                parallel_calls=asked.parallel_calls,
            )
            for _ in range(asked.choices)
        ]

    @contextmanager
    def _reserve(self, asked: EngineRequest, priority: Priority, client: Client) -> Iterator[Reservation]:
        """Take the request's places in the queue, before any work on it; raises ApiError."""
        answers = asked.choices
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
        self, asked: EngineRequest, reservation: Reservation, client: Client, on_size: Callable[[int], None]
    ) -> Conversation:
        """Return the conversation, with its images fetched and decoded as soon as their pixels have room."""
        conversation = await self._prompt_messages.build(asked, client)
        try:
            tokens = self._engine.check_size(conversation.messages, conversation.tools)
        except PromptTooLong as error:
            raise _too_long(error, asked.param) from error
        on_size((tokens + (asked.sampling.max_tokens or self._engine.max_new_tokens)) * asked.choices)
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
        asked: EngineRequest,
        conversation: Conversation,
        priority: Priority,
        ticket: Ticket,
        reservation: Reservation,
        client: Client,
        on_finish: OnFinish,
    ) -> list[AsyncGenerator[Delta | Finish, None]]:
        """Return one stream for each of the choices; none has started."""

        def started() -> None:
            ticket.started()
            reservation.started()

        return [
            self._stream(
                self._engine.stream(
                    conversation.messages,
                    asked.sampling_of(index),
                    thinking=asked.thinking,
                    tools=conversation.tools,
                    priority=priority,
                    client=client,
                ),
                started,
                on_finish,
                ticket.version,
                asked.param,
            )
            for index in range(asked.choices)
        ]

    async def _stream(
        self,
        stream: AsyncIterator[Delta | Finish],
        started: Callable[[], None],
        on_finish: OnFinish,
        version: str,
        field: str,
    ) -> AsyncGenerator[Delta | Finish, None]:
        """Stream one choice from the engine; call `started` at its first item, and maintain the metrics."""
        metrics = Metrics(version, self._slot)
        began = first = time.monotonic()
        waiting = True
        try:
            # The Engine protocol asks for an iterator only, but every engine is an async generator.
            async with aclosing(cast("AsyncGenerator[Delta | Finish, None]", stream)):
                async for item in stream:
                    if waiting:
                        waiting = False
                        started()
                        first = time.monotonic()
                        metrics.observe_first_token(first - began)
                    if isinstance(item, Finish):
                        ended = time.monotonic()
                        metrics.observe_finish(item, ended - first)
                        on_finish(item, AnswerTimes(began, min(began + item.waited, first), first, ended))
                    yield item
        except PromptTooLong as error:
            raise _too_long(error, field) from error
        except Refused as error:
            raise invalid(str(error), param=_param(error, field)) from error
        except QueueTimeout as error:
            raise ApiError(429, str(error), code="queue_timeout", headers={"Retry-After": "5"}) from error


def _too_long(error: PromptTooLong, field: str) -> ApiError:
    return invalid(str(error), param=_param(error, field), code="context_length_exceeded")


def _param(error: Refused, field: str) -> str:
    """Return the field at fault; `field` is what the request calls its messages."""
    return field if error.param == Refused.param else error.param
