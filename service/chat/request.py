"""The chat request in OpenAI's format, and its validation."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from service.chat.bounded_json import JsonBudget, TooComplex
from service.chat.engine_request import ClientRequest, EngineRequest
from service.chat.errors import ApiError, invalid
from service.chat.json_schema import UnsupportedSchema, prepared
from service.chat.messages import Items, Message, RequestModel
from service.chat.response import ChatFormat
from service.chat.tool_grammar import grammar_of_calls
from service.engine import Grammar, Sampling, prompt_size

__all__ = ["ChatRequest", "parse_body", "parse_document", "parse_request"]

R = TypeVar("R", bound=ClientRequest)

MAX_TOKENS = 2**31 - 1
MAX_MESSAGES = 10_000  # a prompt of 32,768 tokens has no room for more
MAX_DEFINITION = 1 << 20  # characters of a schema or of a tool's parameters; a prompt of 131,072 tokens can have them
MAX_MESSAGE = 300  # characters: pydantic quotes the input, which may be megabytes long
MAX_STRUCTURE = 150_000
"""Brackets, commas and colons of a request; the default of GLM_MAX_STRUCTURE. A text of 32,768 tokens, the default
length of a prompt, has at most as many, since each is a token as a rule; the rest is for the JSON around it."""


class StreamOptions(RequestModel):
    """Options of a streamed response."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(default=None, description="every chunk has the usage so far")


class TemplateOptions(RequestModel):
    """Variables of the chat template that a request may set."""

    enable_thinking: bool | None = None


class Function(RequestModel):
    """The definition of a function; `parameters` is the JSON schema of its arguments, an object."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description="accepted and ignored: arguments are not constrained")


class Tool(RequestModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function

    @model_validator(mode="after")
    def _check_parameters(self) -> Tool:
        _to_json(self.function.parameters)
        return self

    def definition(self) -> dict[str, Any]:
        """Return the tool as chat templates expect it."""
        return self.model_dump(exclude_none=True)


class JsonSchema(RequestModel):
    """A JSON schema for the content."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None

    @field_validator("schema_")
    @classmethod
    def _check_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        _to_json(value)
        return value


class TextFormat(RequestModel):
    """Unconstrained text."""

    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(RequestModel):
    """JSON that conforms to a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


Format = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def _to_json(value: Any) -> str:
    """Serialize a value that was parsed from JSON; it may contain infinity, which 1e999 is parsed as."""
    if prompt_size.characters(value, MAX_DEFINITION) > MAX_DEFINITION:
        raise PydanticCustomError("too_long", "is longer than any that is accepted")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise PydanticCustomError("not_json", "contains a number that JSON cannot represent") from error


def wrap_string(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class NamedFunction(RequestModel):
    """The function that the model must call."""

    name: str


class NamedTool(RequestModel):
    """The tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


def _check_tool_choice(value: Any) -> Any:
    if isinstance(value, dict | NamedTool) or value in ("none", "auto", "required", None):
        return value
    raise PydanticCustomError("tool_choice", 'must be "none", "auto", "required" or a function')


def _reject(value: Any) -> None:
    if value:
        raise PydanticCustomError("unsupported", "is not supported; omit it")


def _check_modalities(value: Any) -> None:
    if value not in (None, ["text"], []):
        raise PydanticCustomError("modalities", 'must be ["text"]: only text output is supported')


Unsupported = Annotated[
    None, BeforeValidator(_reject), Field(description="not supported; rejected, because ignoring it changes the result")
]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class ChatRequest(ClientRequest):
    """The body of POST /v1/chat/completions. Outside `messages`, null selects the default."""

    messages: Items[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str | None = Field(default=None, description="ignored: a host serves one model, which the response names")
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, description="number of choices; limited by the server's settings")
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        Items[StopString] | None, BeforeValidator(wrap_string, json_schema_input_type=list[StopString] | str | None)
    ] = Field(default=None, max_length=4)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: Format | None = None
    tools: Items[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedTool | None, BeforeValidator(_check_tool_choice)
    ] = Field(default=None, description="required or a function: the output after any reasoning is a call")
    parallel_tool_calls: bool | None = Field(default=None, description="false: at most one call")
    user: str | None = None
    chat_template_kwargs: TemplateOptions | None = None
    modalities: Annotated[
        None, BeforeValidator(_check_modalities, json_schema_input_type=list[Literal["text"]] | None)
    ] = None
    audio: Unsupported = None
    logit_bias: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    web_search_options: Unsupported = None

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise _combination_error("stream_options", "is only allowed when stream is true")
        if self.top_logprobs is not None and not self.logprobs:
            raise _combination_error("top_logprobs", "is only allowed when logprobs is true")
        if self.must_call and not self.tools:
            raise _combination_error("tool_choice", "is only allowed with tools")
        if isinstance(self.tool_choice, NamedTool) and not self.chosen_tools:
            raise _combination_error("tool_choice", "names no function of tools")
        try:
            self.grammar  # noqa: B018  (kept, as long as the tools are there)
        except UnsupportedSchema as error:
            raise _combination_error(
                "tools" if self.must_call else "response_format", f"has a JSON schema that cannot be used: {error}"
            ) from error
        return self

    def engine_request(self) -> EngineRequest:
        """See ClientRequest."""
        return EngineRequest(
            self.messages,
            Sampling(
                max_tokens=self.max_completion_tokens or self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                seed=self.seed,
                stop=tuple(self.stop or ()),
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                grammar=self.grammar,
            ),
            tools=self.enabled_tools,
            thinking=self.thinking,
            parallel_calls=self.parallel_tool_calls is not False,
            choices=self.n or 1,
        )

    def answer_format(self) -> ChatFormat:
        """See ClientRequest."""
        options = self.stream_options or StreamOptions()
        return ChatFormat(self.thinking is not False, bool(options.include_usage), bool(options.continuous_usage_stats))

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the content; None if the content is text."""
        if isinstance(self.response_format, JsonSchemaFormat):
            return self.response_format.json_schema.schema_
        return {"type": "object"} if isinstance(self.response_format, JsonObjectFormat) else None

    @property
    def must_call(self) -> bool:
        """Whether the output must be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def chosen_tools(self) -> list[dict[str, Any]]:
        """The definitions of the tools that may be called."""
        chosen = self.tool_choice
        if isinstance(chosen, NamedTool):
            return [one for one in self.enabled_tools if one["function"]["name"] == chosen.function.name]
        return self.enabled_tools

    @cached_property
    def grammar(self) -> Grammar | None:
        """What the output after any reasoning must be; None if it may be any text. Raises UnsupportedSchema."""
        document = None if self.json_schema is None else prepared(self.json_schema)
        single = self.parallel_tool_calls is False or isinstance(self.tool_choice, NamedTool)
        if self.must_call:
            return grammar_of_calls(self.chosen_tools, single=single)
        if document is None:
            return None
        if self.enabled_tools:
            return grammar_of_calls(self.enabled_tools, single=single, document=document)
        return Grammar.of_document(document)

    @property
    def enabled_tools(self) -> list[dict[str, Any]]:
        """The definitions of the tools that the prompt offers to the model."""
        return [tool.definition() for tool in self.tools or ()] if self.tool_choice != "none" else []

    @property
    def thinking(self) -> bool | None:
        """Whether reasoning precedes the content; None leaves it to the chat template."""
        return self.chat_template_kwargs.enable_thinking if self.chat_template_kwargs else None


def _combination_error(param: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("combination", "{param} {reason}", {"param": param, "reason": reason})


def parse_request(body: bytes | bytearray, max_structure: int = MAX_STRUCTURE) -> ChatRequest:
    """Parse and validate the body of a chat request; see `parse_body`."""
    return parse_body(body, ChatRequest, max_structure)


def parse_body(body: bytes | bytearray, kind: type[R], max_structure: int = MAX_STRUCTURE) -> R:
    """Parse and validate the body of a request of this kind; raises ApiError 400 that names the field.

    `max_structure`: the brackets, commas and colons that it may have.
    """
    if not body or body.isspace():
        raise invalid("the request body is empty; it must be a JSON object")
    budget = JsonBudget(max_structure)
    try:
        document = budget.parse(body)
    except TooComplex as error:
        raise invalid(f"the request body is too complex: {error}", code="too_complex") from None
    except ValueError as error:
        raise invalid(f"the request body is not valid JSON: {str(error)[:MAX_MESSAGE]}") from error
    if not isinstance(document, dict):
        raise invalid("the request body must be a JSON object")
    try:
        return kind.model_validate(document, context=budget)
    except ValidationError as error:
        raise _validation_error(error, document) from error


def parse_document(document: dict[str, Any], max_structure: int = MAX_STRUCTURE) -> ChatRequest:
    """Validate a request that was parsed from JSON, by the same rules; raises ApiError 400 that names the field."""
    try:
        body = pydantic_core.to_json(document)
    except ValueError as error:
        raise invalid("the request contains a value that JSON cannot represent") from error
    return parse_request(body, max_structure)


def _validation_error(error: ValidationError, document: Any) -> ApiError:
    """Convert the first error; `param` is its path in the request, such as messages[0].content[1].text."""
    detail = error.errors(include_url=False, include_input=False)[0]
    location, path = detail["loc"], ""
    value: Any = document
    for depth, key in enumerate(location):
        if isinstance(key, int):
            path += f"[{key}]"
            value = value[key] if isinstance(value, list) and key < len(value) else None
        elif isinstance(value, dict) and (key in value or (detail["type"] == "missing" and depth == len(location) - 1)):
            path += f".{key}" if path else key
            value = value.get(key)
        # Any other key names a branch of a union in pydantic's schema and is not part of the request.
    message, path = detail["msg"][:MAX_MESSAGE], path[:MAX_MESSAGE]
    return invalid(f"{path}: {message}" if path else message, param=path or detail.get("ctx", {}).get("param"))
