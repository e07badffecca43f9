"""The messages of a chat request, in OpenAI's format."""

from __future__ import annotations

from typing import Annotated, Any, Literal, LiteralString

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from service.chat.bounded_json import JsonBudget, TooComplex
from service.chat.request_model import Dropped, Items, RequestModel, Unsupported

__all__ = ["Arguments", "FunctionCall", "ImagePart", "ImageURL", "Message", "MessageToolCall", "TextPart"]

MAX_NAME = 256  # characters


class PartModel(RequestModel):
    """Base of the parts of a message, and of messages: marks for caches that other servers have."""

    cache_control: Dropped = None
    prompt_cache_breakpoint: Dropped = None


class TextPart(PartModel):
    """A text part of a message."""

    type: Literal["text"]
    text: str


class ImageURL(RequestModel):
    """The location of an image, and how much of it the model sees."""

    url: str = Field(description="data:image/…;base64,… or an https URL of a host that the server's settings allow")
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        default=None, description="low: the image is reduced to 512 pixels a side, if it is larger"
    )


def _wrap_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(PartModel):
    """An image part of a message: `{"url": …}` as in OpenAI's API, or the URL alone."""

    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_wrap_url, json_schema_input_type=ImageURL | str)]


INSTEAD = {
    "video_url": 'videos are not supported (type "video_url"): send frames of the video as images (type "image_url")',
    "input_audio": 'audio is not supported (type "input_audio"): send what is said as text (type "text")',
    "file": 'files are not supported (type "file"): send pages as images (type "image_url") or text (type "text")',
}
"""What a client is told that sends a part of another type, by type."""


def _refuse_media(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in INSTEAD:
        raise PydanticCustomError("part_type", "{reason}", {"reason": INSTEAD[kind]})
    return value


Part = Annotated[TextPart | ImagePart, Field(discriminator="type"), BeforeValidator(_refuse_media)]


def _wrap_text(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is not None and not isinstance(value, list):
        raise PydanticCustomError("content_type", "must be a string or a list of parts")
    return value


def _parse_arguments(value: Any, info: ValidationInfo) -> Any:
    """Parse a JSON object from text: chat templates take the object. The validation's context is its JsonBudget."""
    if not isinstance(value, str):
        raise PydanticCustomError("arguments_type", "must be a string that contains a JSON object")
    budget: JsonBudget = info.context  # type: ignore[assignment]  # parse_request passes it
    try:
        arguments = budget.parse(value or "{}")
    except TooComplex as error:
        raise PydanticCustomError("arguments_size", "is too complex: {reason}", {"reason": str(error)}) from None
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise PydanticCustomError("arguments_json", "must contain a JSON object")
    return arguments


Arguments = Annotated[dict[str, Any], BeforeValidator(_parse_arguments, json_schema_input_type=str)]


class FunctionCall(RequestModel):
    """The function of a tool call and its arguments."""

    name: str = Field(min_length=1)
    arguments: Arguments


class MessageToolCall(RequestModel):
    """A tool call in an assistant's message."""

    id: str | None = None
    index: Dropped = None  # of a streamed call
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(PartModel):
    """One message. A string content is read as one text part; it may be null for the assistant only."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Items[Part] | None, BeforeValidator(_wrap_text, json_schema_input_type=list[Part] | str | None)
    ] = None
    name: str | None = Field(
        default=None, max_length=MAX_NAME, description="for the chat template, which may leave it out"
    )
    reasoning_content: str | None = Field(default=None, description="the reasoning of the assistant")
    reasoning: str | None = Field(default=None, description="the same as reasoning_content")
    tool_calls: Items[MessageToolCall] | None = None
    tool_call_id: str | None = Field(default=None, description="the tool call whose result this message contains")
    annotations: Dropped = None  # of an earlier answer: where in it a source is cited
    audio: Unsupported = None
    function_call: Unsupported = None
    partial: Unsupported = None
    prefix: Unsupported = None
    refusal: Unsupported = None

    @model_validator(mode="after")
    def _check_role(self) -> Message:
        if not self.content and self.role != "assistant":
            raise self._role_error("content_missing", "content is required for role {role}")
        if self.role not in ("user", "tool") and any(isinstance(part, ImagePart) for part in self.content or ()):
            raise self._role_error("image_role", "images are allowed for roles user and tool only, not for role {role}")
        if self.role != "assistant" and self.tool_calls:
            raise self._role_error("calls_role", "tool_calls are allowed for role assistant only, not for role {role}")
        if None not in (self.reasoning, self.reasoning_content) and self.reasoning != self.reasoning_content:
            raise self._role_error("reasoning", "reasoning and reasoning_content differ; send one of them")
        return self

    @property
    def thoughts(self) -> str | None:
        """The reasoning, under whichever name it was sent."""
        return self.reasoning if self.reasoning_content is None else self.reasoning_content

    def _role_error(self, kind: LiteralString, message: LiteralString) -> PydanticCustomError:
        return PydanticCustomError(kind, message, {"role": self.role})
