"""The conversation as the engine takes it, pictures decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from PIL import Image

from service.chat import images
from service.chat.errors import ApiError, invalid
from service.chat.image_fetcher import Fetcher
from service.chat.messages import ImagePart, Message, TextPart
from service.chat.request import ChatRequest
from service.settings import Settings

__all__ = ["Turns"]

DECODING = 4  # requests whose images are decoded at the same time: each may take hundreds of megabytes meanwhile

Fetched = Mapping[str, bytes | images.ImageError]


class Turns:
    """Makes the engine's messages of a request's."""

    def __init__(self, settings: Settings, fetcher: Fetcher) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._decoding = asyncio.Semaphore(DECODING)

    async def of(self, asked: ChatRequest) -> list[dict[str, Any]]:
        """Fetch and decode what is to be; raises ApiError."""
        if not asked.images:
            return self._messages(asked, {})
        if len(asked.images) > self._settings.max_images:
            raise invalid(
                f"{len(asked.images)} images; at most {self._settings.max_images} are allowed", param="messages"
            )
        urls = [part.image_url.url for part in asked.images]
        fetched = await self._fetcher.fetch(list(filter(images.is_remote, urls)), max_total=self._settings.max_body)
        async with self._decoding:
            return await asyncio.to_thread(self._messages, asked, fetched)

    def _messages(self, asked: ChatRequest, fetched: Fetched) -> list[dict[str, Any]]:
        return [self._message(message, f"messages[{number}]", fetched) for number, message in enumerate(asked.messages)]

    def _message(self, message: Message, where: str, fetched: Fetched) -> dict[str, Any]:
        parts = [
            self._part(part, f"{where}.content[{place}]", fetched) for place, part in enumerate(message.content or ())
        ]
        # Templates differ in which roles may have parts; a string they all take.
        plain = "".join(part["text"] for part in parts) if all("text" in part for part in parts) else None
        made: dict[str, Any] = {
            "role": "system" if message.role == "developer" else message.role,
            "content": parts if plain is None else plain,
        }
        if message.reasoning_content is not None:
            made["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            made["tool_calls"] = [call.model_dump(exclude_none=True) for call in message.tool_calls]
        if message.tool_call_id is not None:
            made["tool_call_id"] = message.tool_call_id
        return made

    def _part(self, part: TextPart | ImagePart, where: str, fetched: Fetched) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        try:
            return {"type": "image", "image": self._image(part.image_url.url, fetched)}
        except images.ImageError as error:
            raise _unusable(error, f"{where}.image_url") from error

    def _image(self, url: str, fetched: Fetched) -> Image.Image:
        limit = self._settings.max_pixels
        if not images.is_remote(url):
            return images.from_data_url(url, max_pixels=limit)
        found = fetched[url]
        if isinstance(found, images.ImageError):
            raise found
        return images.from_bytes(found, max_pixels=limit)


def _unusable(error: images.ImageError, where: str) -> ApiError:
    return invalid(f"{where}: {error}", param=where, code="invalid_image")
