"""Chat completions without HTTP: a request goes in, the answer comes out whole or as events."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from service import images, schema
from service.completion import Head, Item, pieces, whole
from service.engine import Engine, Finish, Priority, PromptTooLong, Refused, Sampling, WaitedTooLong
from service.errors import ApiError, invalid
from service.identity import Identity
from service.metrics import Metrics
from service.settings import Settings

__all__ = ["Chat"]

DECODING = 4  # requests whose images are decoded at the same time: each may take hundreds of megabytes meanwhile


class Chat:
    """Answers requests from one engine. Every method raises ApiError for what the client is to be told.

    Any `model` is accepted: a host serves one, and the answer says its name. Cancelling who awaits frees the engine.
    """

    def __init__(self, engine: Engine, identity: Identity, settings: Settings) -> None:
        self._engine = engine
        self._identity = identity
        self._settings = settings
        self._metrics = Metrics(identity.version, identity.slot)
        self._decoding = asyncio.Semaphore(DECODING)
        self._waiting = 0  # interactive requests that the engine has not begun to answer

    async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
        """Answer the body of a request, as JSON was read, with a whole `chat.completion`."""
        asked = await asyncio.to_thread(schema.validate, document)
        if asked.stream:
            raise invalid("stream must be false here: the answer comes in one piece", param="stream")
        return await self.answer(asked, priority)

    async def answer(self, asked: schema.ChatRequest, priority: Priority = "interactive") -> dict[str, Any]:
        """Answer with a whole `chat.completion`."""
        return await whole(self._answer(asked, await self._messages(asked), priority), self._head())

    async def events(self, asked: schema.ChatRequest, request_id: str) -> AsyncGenerator[bytes, None]:
        """Answer as server-sent events; what cannot be answered raises before the first of them."""
        items = self._answer(asked, await self._messages(asked), "interactive")
        first = await anext(items)
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        async with aclosing(pieces(first, items, self._head(), usage, request_id)) as events:
            async for event in events:
                yield event

    def _head(self) -> Head:
        return Head(
            f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self._settings.served_model, self._identity.version
        )

    async def _messages(self, asked: schema.ChatRequest) -> list[dict[str, Any]]:
        if not asked.images:
            return _messages(asked, self._settings)
        async with self._decoding:
            return await asyncio.to_thread(_messages, asked, self._settings)

    async def _answer(
        self, asked: schema.ChatRequest, messages: list[dict[str, Any]], priority: Priority
    ) -> AsyncGenerator[Item, None]:
        """Stream from the engine, in its queue first."""
        interactive = priority == "interactive"
        if interactive and self._waiting >= self._settings.max_queue:
            raise ApiError(
                429,
                f"{self._waiting} requests are waiting already; try again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        thinking = asked.chat_template_kwargs.enable_thinking if asked.chat_template_kwargs else None
        began, waiting = time.monotonic(), True
        self._waiting += interactive
        try:
            # engines are async generators, whatever the least that their Protocol asks for
            stream = cast(
                "AsyncGenerator[Item, None]",
                self._engine.stream(messages, _sampling(asked), thinking=thinking, priority=priority),
            )
            async with aclosing(stream):
                async for item in stream:
                    if waiting:
                        waiting = False
                        self._waiting -= interactive
                        self._metrics.first_token(time.monotonic() - began)
                    if isinstance(item, Finish):
                        self._metrics.tokens(item.completion_tokens)
                    yield item
        except PromptTooLong as error:
            raise invalid(str(error), param=error.param, code="context_length_exceeded") from error
        except Refused as error:
            raise invalid(str(error), param=error.param) from error
        except WaitedTooLong as error:
            raise ApiError(429, str(error), code="queue_timeout", headers={"Retry-After": "5"}) from error
        finally:
            self._waiting -= interactive and waiting


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
