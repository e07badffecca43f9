"""Conversion of a request's messages to those of the engine, with images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.chat import images
from service.chat.engine_request import EngineRequest
from service.chat.errors import ApiError, invalid
from service.chat.image_decoder import EncodedImage, ImageDecoder
from service.chat.image_fetcher import ImageFetcher
from service.chat.messages import ImageURL, Message, TextPart
from service.fairness.client import Client
from service.fairness.pool import FairPool
from service.settings import Settings

__all__ = ["Conversation", "PromptMessages", "convert"]

DECODERS = 3
"""Images that are decoded at a time, two of them of one address."""

SMALL = 64  # messages, or parts of one; more are converted in a thread

FetchedImages = Mapping[str, bytes | images.ImageError]


@dataclass(frozen=True)
class Conversation:
    """What the engine takes of a request; see `Engine.stream`. Its images are encoded until `PromptMessages.decode`."""

    messages: list[dict[str, Any]] | str
    tools: list[dict[str, Any]]
    paths: Sequence[str] = ()
    """Where in the request each message comes from."""

    @property
    def pixels(self) -> int:
        """Of all images."""
        return sum(part["image"].pixels for _, part in self.images())

    def images(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the path in the request and the part of each image."""
        if isinstance(self.messages, str):
            return
        for message, path in zip(self.messages, self.paths, strict=True):
            if isinstance(message["content"], list):
                for j, part in enumerate(message["content"]):
                    if part["type"] == "image":
                        yield f"{path}.content[{j}].image_url", part


class PromptMessages:
    """Builds the engine's messages."""

    def __init__(self, settings: Settings, fetcher: ImageFetcher) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._decoder = ImageDecoder(max_pixels=settings.max_pixels, processes=DECODERS, seconds=settings.max_decode)
        self._pool = FairPool(DECODERS, "images")

    async def build(self, request: EngineRequest, client: Client) -> Conversation:
        """Fetch the images, read their headers, and return the conversation; raises ApiError."""
        found = request.images
        if len(found) > self._settings.max_images:
            raise invalid(
                f"the request has {len(found)} images; at most {self._settings.max_images} are allowed",
                param=request.param,
            )
        if not found and request.is_small(SMALL):
            return self._convert(request, {})
        urls = [part.image_url.url for part in found if images.is_remote(part.image_url.url)]
        fetched = await self._fetcher.fetch(urls, max_total=self._settings.max_body)
        return await self._pool.run(client, self._convert, request, fetched)

    async def decode(self, conversation: Conversation, client: Client) -> None:
        """Decode the images, each when it is this client's turn; raises ApiError."""
        for path, part in conversation.images():
            try:
                part["image"] = await self._pool.run(client, self._decoder.decode, part["image"])
            except images.ImageError as error:
                raise _invalid(path, error) from error

    async def close(self) -> None:
        """End the decoders."""
        self._pool.close()
        self._decoder.close()

    def _convert(self, request: EngineRequest, fetched: FetchedImages) -> Conversation:
        def open_image(location: ImageURL, path: str) -> EncodedImage:
            try:
                return self._open(location, fetched)
            except images.ImageError as error:
                raise _invalid(path, error) from error

        if isinstance(request.messages, str):
            return Conversation(request.messages, [])
        paths = [request.path(index) for index in range(len(request.messages))]
        messages = [convert(message, path, open_image) for message, path in zip(request.messages, paths, strict=True)]
        conversation = Conversation(messages, request.tools, paths)
        limit = self._settings.max_request_pixels
        if conversation.pixels > limit:
            raise invalid(
                f"the images of the request have {conversation.pixels} pixels; at most {limit} are allowed",
                param=request.param,
            )
        return conversation

    def _open(self, location: ImageURL, fetched: FetchedImages) -> EncodedImage:
        url, is_small = location.url, location.detail == "low"
        if not images.is_remote(url):
            return self._decoder.measure(images.base64_of(url), is_base64=True, is_small=is_small)
        data = fetched[url]
        if isinstance(data, images.ImageError):
            raise data
        return self._decoder.measure(data, is_small=is_small)


def convert(message: Message, path: str, open_image: Callable[[ImageURL, str], Any]) -> dict[str, Any]:
    """Return a message as the engine takes it. `open_image` returns an image, of its location and the part's path."""
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image", "image": open_image(part.image_url, f"{path}.content[{i}].image_url")}
        for i, part in enumerate(message.content or ())
    ]
    # Every template accepts a string; not every one accepts parts for every role.
    text = "".join(part["text"] for part in parts) if all("text" in part for part in parts) else None
    converted: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": parts if text is None else text,
    }
    if message.name is not None:
        converted["name"] = message.name
    if message.thoughts is not None:
        converted["reasoning_content"] = message.thoughts
    if message.tool_calls:
        converted["tool_calls"] = [call.model_dump(exclude_none=True) for call in message.tool_calls]
    if message.tool_call_id is not None:
        converted["tool_call_id"] = message.tool_call_id
    return converted


def _invalid(path: str, error: images.ImageError) -> ApiError:
    return invalid(f"{path}: {error}", param=path, code="invalid_image")
