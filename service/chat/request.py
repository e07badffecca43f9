"""The chat request as OpenAI writes it, and what is wrong with one."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from service.chat.errors import ApiError, invalid
from service.chat.messages import ImagePart, Message, RequestModel

__all__ = ["ChatRequest", "explain", "parse", "parse_document"]

MAX_TOKENS = 2**31 - 1
MAX_EXPLANATION = 300  # characters: pydantic quotes what it met, and the client may have sent megabytes


class StreamOptions(RequestModel):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None


class TemplateOptions(RequestModel):
    """Variables of the chat template that clients may set."""

    enable_thinking: bool | None = None


class Function(RequestModel):
    """What the model is told of a tool; `parameters` is a JSON schema of an object."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description="accepted; calls are not constrained")


class Tool(RequestModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function

    @model_validator(mode="after")
    def _is_json(self) -> Tool:
        _json_text(self.function.parameters)
        return self

    def definition(self) -> dict[str, Any]:
        """Put it as the chat template has it."""
        return self.model_dump(exclude_none=True)


class JsonSchema(RequestModel):
    """The form that an answer must have."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None

    @field_validator("schema_")
    @classmethod
    def _is_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        _json_text(value)
        return value


class TextFormat(RequestModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """A JSON object of any form."""

    type: Literal["json_object"]


class JsonSchemaFormat(RequestModel):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


Format = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def _json_text(value: Any) -> str:
    """Write as JSON what was read as JSON, which may hold 1e999."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise PydanticCustomError("not_json", "cannot be written as JSON") from error


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _choice(value: Any) -> Any:
    if value in ("none", "auto", None):
        return value
    raise PydanticCustomError("tool_choice", "must be none or auto: a call cannot be forced here")


def _refuse(value: Any) -> None:
    if value:
        raise PydanticCustomError("unsupported", "is not supported here; leave it out")


def _text_alone(value: Any) -> None:
    if value not in (None, ["text"], []):
        raise PydanticCustomError("modalities", 'must be ["text"]: answers are text here')


Unsupported = Annotated[
    None, BeforeValidator(_refuse), Field(description="not supported: refused, for it would matter")
]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class ChatRequest(RequestModel):
    """The body of POST /v1/chat/completions. Null means the default, everywhere but in `messages`."""

    messages: list[Message] = Field(min_length=1)
    model: str | None = Field(default=None, description="any: a host serves one model, and the answer says its name")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, description="answers to give; the server limits it")
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Stop] | None, BeforeValidator(_as_list, json_schema_input_type=list[Stop] | str | None)] = (
        Field(default=None, max_length=4)
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: Format | None = None
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Annotated[Literal["none", "auto"] | None, BeforeValidator(_choice)] = None
    parallel_tool_calls: bool | None = Field(default=None, description="accepted; has no effect")
    user: str | None = None
    chat_template_kwargs: TemplateOptions | None = None
    modalities: Annotated[None, BeforeValidator(_text_alone, json_schema_input_type=list[Literal["text"]] | None)] = (
        None
    )
    audio: Unsupported = None
    logit_bias: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    web_search_options: Unsupported = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise _misfit("stream_options", "is only allowed when stream is true")
        if self.top_logprobs is not None and not self.logprobs:
            raise _misfit("top_logprobs", "is only allowed when logprobs is true")
        if self.json_schema is not None and self.called_tools:
            raise _misfit("response_format", "and tools exclude each other: a call is not of that form")
        return self

    @property
    def images(self) -> list[ImagePart]:
        """All images, in order."""
        return [part for message in self.messages for part in message.content or () if isinstance(part, ImagePart)]

    @property
    def json_schema(self) -> str | None:
        """The schema that the answer must follow, as JSON text."""
        if isinstance(self.response_format, JsonSchemaFormat):
            return _json_text(self.response_format.json_schema.schema_)
        return '{"type":"object"}' if isinstance(self.response_format, JsonObjectFormat) else None

    @property
    def called_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        return [tool.definition() for tool in self.tools or ()] if self.tool_choice != "none" else []

    @property
    def thinking(self) -> bool | None:
        """Whether to think before the answer; None leaves it to the chat template."""
        asked = self.chat_template_kwargs.enable_thinking if self.chat_template_kwargs else None
        return False if asked is None and self.json_schema is not None else asked


def _misfit(param: str, why: str) -> PydanticCustomError:
    return PydanticCustomError("misfit", "{param} {why}", {"param": param, "why": why})


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
    try:
        return ChatRequest.model_validate(document)
    except ValidationError as error:
        raise explain(error, document) from error


def parse_document(document: dict[str, Any]) -> ChatRequest:
    """Read a request that is no text any more, by the same rules; raises ApiError 400 that names the field."""
    try:
        body = pydantic_core.to_json(document)
    except ValueError as error:
        raise invalid("the request cannot be written as JSON") from error
    return parse(body)


def explain(error: ValidationError, document: Any) -> ApiError:
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
