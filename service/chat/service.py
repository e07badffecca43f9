"""Chat completions without HTTP: a request goes in, the answer comes out whole or as events."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, cast

from service.chat import request as schema
from service.chat.admission import Passage, Turnstile
from service.chat.errors import ApiError, invalid
from service.chat.image_fetcher import Fetcher
from service.chat.output_parser import Reader
from service.chat.prompt_messages import Turns
from service.chat.request import ChatRequest
from service.chat.response import Completion, Head, Item, pieces, whole
from service.chat.stream_merge import merged
from service.engine import Engine, Finish, Priority, PromptTooLong, Refused, Sampling, WaitedTooLong
from service.identity import Identity
from service.metrics import Metrics
from service.settings import Settings

__all__ = ["Chat"]


class Chat:
    """Answers requests from one engine. Every method raises ApiError for what the client is to be told.

    Any `model` is accepted: a host serves one, and the answer says its name. Cancelling who awaits frees the engine.
    """

    def __init__(
        self, engine: Engine, identity: Identity, settings: Settings, turnstile: Turnstile | None = None
    ) -> None:
        self._engine = engine
        self._slot = identity.slot
        self._settings = settings
        self._turnstile = turnstile or Turnstile(identity)
        self._fetcher = Fetcher(
            settings.image_hosts, timeout=settings.image_timeout, max_bytes=settings.max_image_bytes
        )
        self._turns = Turns(settings, self._fetcher)
        self._waiting = 0  # interactive answers that the engine has not begun

    async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
        """Answer the body of a request, as JSON was read, with a whole `chat.completion`."""
        asked = await asyncio.to_thread(schema.parse_document, document)
        if asked.stream:
            raise invalid("stream must be false here: the answer comes in one piece", param="stream")
        return dict(await self.answer(asked, priority))

    async def answer(
        self, asked: ChatRequest, priority: Priority = "interactive", tell: Callable[[str], None] = lambda _: None
    ) -> Completion:
        """Answer with a whole `chat.completion`; `tell` learns whose weights do it before they begin."""
        messages = await self._messages(asked, priority)
        async with self._turnstile.passage(asked.n or 1) as passage:
            tell(passage.version)
            streams = self._streams(asked, messages, priority, passage)
            return await whole(merged(streams), self._readers(asked), self._head(passage.version))

    async def events(
        self, asked: ChatRequest, request_id: str, tell: Callable[[str], None] = lambda _: None
    ) -> AsyncGenerator[bytes, None]:
        """Answer as server-sent events; what cannot be answered raises before the first of them."""
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        messages = await self._messages(asked, "interactive")
        async with self._turnstile.passage(asked.n or 1) as passage:
            tell(passage.version)
            async with aclosing(merged(self._streams(asked, messages, "interactive", passage))) as items:
                first = await anext(items)
                head = self._head(passage.version)
                written = pieces(first, items, self._readers(asked), head, request_id, usage=usage)
                async with aclosing(written) as events:
                    async for event in events:
                        yield event

    async def close(self) -> None:
        """Close what connections are kept to hosts of images."""
        await self._fetcher.close()

    def _head(self, version: str) -> Head:
        return Head(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self._settings.served_model, version)

    def _readers(self, asked: ChatRequest) -> list[Reader]:
        thinking, tools = asked.thinking is not False, asked.called_tools
        return [Reader(thinking=thinking, boxes=self._settings.boxes, tools=tools) for _ in range(asked.n or 1)]

    async def _messages(self, asked: ChatRequest, priority: Priority) -> list[dict[str, Any]]:
        """Make the conversation as the engine reads it, its pictures fetched and decoded."""
        if (asked.n or 1) > self._settings.max_choices:
            raise invalid(f"n must be at most {self._settings.max_choices}", param="n")
        interactive = priority == "interactive"
        if interactive:
            self._refuse_if_full()  # before anything is fetched or decoded
        messages = await self._turns.of(asked)
        if interactive:
            self._refuse_if_full()
        return messages

    def _streams(
        self, asked: ChatRequest, messages: list[dict[str, Any]], priority: Priority, passage: Passage
    ) -> list[AsyncGenerator[Item, None]]:
        """Make one stream for each of `n`; none has begun."""
        choices = range(asked.n or 1)
        return [self._stream(asked, messages, _sampling(asked, number), priority, passage) for number in choices]

    def _refuse_if_full(self) -> None:
        waiting = self._waiting + self._turnstile.waiting
        if waiting >= self._settings.max_queue:
            raise ApiError(
                429,
                f"{waiting} requests are waiting already; try again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            )

    async def _stream(
        self,
        asked: ChatRequest,
        messages: list[dict[str, Any]],
        sampling: Sampling,
        priority: Priority,
        passage: Passage,
    ) -> AsyncGenerator[Item, None]:
        """Stream from the engine, in its queue first."""
        interactive = priority == "interactive"
        metrics = Metrics(passage.version, self._slot)
        began, waiting = time.monotonic(), True
        self._waiting += interactive
        try:
            # engines are async generators, whatever the least that their Protocol asks for
            stream = cast(
                "AsyncGenerator[Item, None]",
                self._engine.stream(
                    messages, sampling, thinking=asked.thinking, tools=asked.called_tools, priority=priority
                ),
            )
            async with aclosing(stream):
                async for item in stream:
                    if waiting:
                        waiting = False
                        self._waiting -= interactive
                        passage.begun()
                        metrics.first_token(time.monotonic() - began)
                        metrics.engine(self._engine.usage())
                    if isinstance(item, Finish):
                        metrics.tokens(item.completion_tokens)
                    yield item
        except PromptTooLong as error:
            raise invalid(str(error), param=error.param, code="context_length_exceeded") from error
        except Refused as error:
            raise invalid(str(error), param=error.param) from error
        except WaitedTooLong as error:
            raise ApiError(429, str(error), code="queue_timeout", headers={"Retry-After": "5"}) from error
        finally:
            self._waiting -= interactive and waiting
            metrics.engine(self._engine.usage())


def _sampling(asked: ChatRequest, number: int) -> Sampling:
    """Say how to choose the tokens of one of `n` answers: with a seed, each has one of its own."""
    seed = asked.seed if asked.seed is None else (asked.seed + number + 2**63) % 2**64 - 2**63
    return Sampling(
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        seed=seed,
        stop=tuple(asked.stop or ()),
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        json_schema=asked.json_schema,
    )
