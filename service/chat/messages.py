"""The messages of a chat request as OpenAI writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["FunctionCall", "ImagePart", "Message", "RequestModel", "TextPart"]


class RequestModel(BaseModel):
    """A part of a request: what is known is checked strictly, what is unknown is ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class TextPart(RequestModel):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImageURL(RequestModel):
    """Where an image is. `detail` is accepted and has no effect."""

    url: str = Field(description="data:image/…;base64,… or an https URL of a host that the server may fetch from")
    detail: Literal["auto", "low", "high"] | None = None


def _url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(RequestModel):
    """An image in a message: `{"url": …}` as OpenAI has it, or the URL itself."""

    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_url, json_schema_input_type=ImageURL | str)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is not None and not isinstance(value, list):
        raise PydanticCustomError("content_type", "must be a string or a list of parts")
    return value


def _object(value: Any) -> Any:
    """Read the JSON text of an object, which chat templates want as the object that it is."""
    if not isinstance(value, str):
        raise PydanticCustomError("arguments_type", "must be a string: the JSON text of an object")
    try:
        found = pydantic_core.from_json(value or "{}", allow_inf_nan=False)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PydanticCustomError("arguments_json", "is not the JSON text of an object")
    return found


class FunctionCall(RequestModel):
    """A call that the assistant made."""

    name: str = Field(min_length=1)
    arguments: Annotated[dict[str, Any], BeforeValidator(_object, json_schema_input_type=str)]


class MessageToolCall(RequestModel):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(RequestModel):
    """One turn. A string content is read as one text part; only an assistant's may be null."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[Part] | None, BeforeValidator(_parts, json_schema_input_type=list[Part] | str | None)] = (
        None
    )
    reasoning_content: str | None = Field(default=None, description="what the assistant thought")
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = Field(default=None, description="the call that a tool's message answers")

    @model_validator(mode="after")
    def _fits_the_role(self) -> Message:
        if not self.content and self.role != "assistant":
            raise PydanticCustomError("content_missing", "content is missing: a {role} must say something", self._who())
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.content or ()):
            raise PydanticCustomError("image_role", "only a user may send images, not a {role}", self._who())
        if self.role != "assistant" and self.tool_calls:
            raise PydanticCustomError("calls_role", "only an assistant makes tool_calls, not a {role}", self._who())
        return self

    def _who(self) -> dict[str, Any]:
        return {"role": self.role}
