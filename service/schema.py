"""The chat request as OpenAI writes it: what is known is checked strictly, what is unknown is ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from service.errors import ApiError, invalid

__all__ = ["ChatRequest", "ImagePart", "Message", "TextPart", "parse", "validate"]

MAX_TOKENS = 2**31 - 1
MAX_EXPLANATION = 300  # characters: pydantic quotes what it met, and the client may have sent megabytes


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class TextPart(_Model):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImageURL(_Model):
    """Where an image is; only data URLs are served. `detail` is accepted and has no effect."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


def _url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(_Model):
    """An image in a message: `{"url": …}` as OpenAI has it, or the URL itself."""

    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_url)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is not None and not isinstance(value, list):
        raise PydanticCustomError("content_type", "must be a string or a list of parts")
    return value


class Message(_Model):
    """One turn. A string content is read as one text part; only an assistant's may be null."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[Part] | None, BeforeValidator(_parts)] = None

    @model_validator(mode="after")
    def _fits_the_role(self) -> Message:
        if not self.content and self.role != "assistant":
            raise PydanticCustomError("content_missing", "content is missing: a {role} must say something", self._who())
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.content or ()):
            raise PydanticCustomError("image_role", "only a user may send images, not a {role}", self._who())
        return self

    def _who(self) -> dict[str, Any]:
        return {"role": self.role}


class StreamOptions(_Model):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None


class TemplateOptions(_Model):
    """Variables of the chat template that clients may set."""

    enable_thinking: bool | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class ChatRequest(_Model):
    """The body of POST /v1/chat/completions. Null means the default, everywhere but in `messages`."""

    messages: list[Message] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]] | None, BeforeValidator(_as_list)] = Field(
        default=None, max_length=4
    )
    n: Literal[1] | None = None
    user: str | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "stream_options", "{param} is only allowed when stream is true", {"param": "stream_options"}
            )
        return self

    @property
    def images(self) -> list[ImagePart]:
        """All images, in order."""
        return [part for message in self.messages for part in message.content or () if isinstance(part, ImagePart)]


def parse(body: bytes) -> ChatRequest:
    """Read a request body; raises ApiError 400 that names the field."""
    if not body.strip():
        raise invalid("the body is empty; it must be a JSON object")
    try:
        document = pydantic_core.from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise invalid(f"the body is not valid JSON: {str(error)[:MAX_EXPLANATION]}") from error
    if not isinstance(document, dict):
        raise invalid("the body must be a JSON object")
    return validate(document)


def validate(document: dict[str, Any]) -> ChatRequest:
    """Check a request that was read already; raises ApiError 400 that names the field."""
    try:
        return ChatRequest.model_validate(document)
    except ValidationError as error:
        raise _explain(error, document) from error


def _explain(error: ValidationError, document: dict[str, Any]) -> ApiError:
    """Turn the first finding into OpenAI's words: `param` is a path such as messages[0].content[1].text."""
    finding = error.errors(include_url=False, include_input=False)[0]
    location, path = finding["loc"], ""
    here: Any = document
    for step, key in enumerate(location):
        if isinstance(key, int):
            path += f"[{key}]"
            here = here[key] if isinstance(here, list) and key < len(here) else None
        elif isinstance(here, dict) and (key in here or step == len(location) - 1):
            path += f".{key}" if path else key
            here = here.get(key)
        # any other name is the branch of a union that pydantic took, and no part of the request
    message = finding["msg"][:MAX_EXPLANATION]
    return invalid(f"{path}: {message}" if path else message, param=path or finding.get("ctx", {}).get("param"))
