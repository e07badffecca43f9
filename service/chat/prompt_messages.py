"""Conversion of a request's messages to those of the engine, with decoded images."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from PIL import Image

from service.chat import images
from service.chat.errors import invalid
from service.chat.image_fetcher import ImageFetcher
from service.chat.messages import ImagePart, Message, TextPart
from service.chat.request import ChatRequest
from service.settings import Settings

__all__ = ["PromptMessages"]

CONCURRENT_DECODES = 4  # requests whose images are decoded at a time: each can use hundreds of megabytes

FetchedImages = Mapping[str, bytes | images.ImageError]


class PromptMessages:
    """Builds the engine's messages; see `Engine.stream` for their format."""

    def __init__(self, settings: Settings, fetcher: ImageFetcher) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._decoding = asyncio.Semaphore(CONCURRENT_DECODES)

    async def build(self, request: ChatRequest) -> list[dict[str, Any]]:
        """Fetch and decode the images and return the messages; raises ApiError."""
        if not request.images:
            return self._messages(request, {})
        if len(request.images) > self._settings.max_images:
            raise invalid(
                f"the request has {len(request.images)} images; at most {self._settings.max_images} are allowed",
                param="messages",
            )
        urls = [part.image_url.url for part in request.images]
        fetched = await self._fetcher.fetch(list(filter(images.is_remote, urls)), max_total=self._settings.max_body)
        async with self._decoding:
            return await asyncio.to_thread(self._messages, request, fetched)

    def _messages(self, request: ChatRequest, fetched: FetchedImages) -> list[dict[str, Any]]:
        return [self._message(message, f"messages[{i}]", fetched) for i, message in enumerate(request.messages)]

    def _message(self, message: Message, path: str, fetched: FetchedImages) -> dict[str, Any]:
        parts = [self._part(part, f"{path}.content[{i}]", fetched) for i, part in enumerate(message.content or ())]
        # Every template accepts a string; not every one accepts parts for every role.
        text = "".join(part["text"] for part in parts) if all("text" in part for part in parts) else None
        converted: dict[str, Any] = {
            "role": "system" if message.role == "developer" else message.role,
            "content": parts if text is None else text,
        }
        if message.reasoning_content is not None:
            converted["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            converted["tool_calls"] = [call.model_dump(exclude_none=True) for call in message.tool_calls]
        if message.tool_call_id is not None:
            converted["tool_call_id"] = message.tool_call_id
        return converted

    def _part(self, part: TextPart | ImagePart, path: str, fetched: FetchedImages) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        try:
            return {"type": "image", "image": self._decode(part.image_url.url, fetched)}
        except images.ImageError as error:
            param = f"{path}.image_url"
            raise invalid(f"{param}: {error}", param=param, code="invalid_image") from error

    def _decode(self, url: str, fetched: FetchedImages) -> Image.Image:
        max_pixels = self._settings.max_pixels
        if not images.is_remote(url):
            return images.from_data_url(url, max_pixels=max_pixels)
        data = fetched[url]
        if isinstance(data, images.ImageError):
            raise data
        return images.from_bytes(data, max_pixels=max_pixels)
