"""The chat request in OpenAI's format, and its validation."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from service.chat.bounded_json import JsonBudget, TooComplex
from service.chat.engine_request import ClientRequest, EngineRequest
from service.chat.errors import invalid
from service.chat.formats import FormatFields
from service.chat.json_schema import UnsupportedSchema
from service.chat.known_fields import DroppedFields, UnsupportedFields
from service.chat.messages import Message
from service.chat.request_model import Items, combination_error
from service.chat.response import ChatFormat
from service.chat.sampling_fields import MAX_TOKENS, SamplingFields, StreamOptions
from service.chat.thinking import ThinkingFields
from service.chat.tool_definitions import NamedTool, Tool, ToolChoice
from service.chat.tool_grammar import grammar_of_calls, grammar_of_strict_calls
from service.chat.validation_messages import MAX_MESSAGE, validation_error
from service.engine import Grammar

__all__ = ["ChatRequest", "parse_body", "parse_document", "parse_request"]

R = TypeVar("R", bound=ClientRequest)

MAX_MESSAGES = 10_000  # a prompt of 32,768 tokens has no room for more
MAX_BIASES = 300
MAX_STOP_TOKENS = 64
MAX_STRUCTURE = 150_000
"""Brackets, commas and colons of a request; the default of GLM_MAX_STRUCTURE. A text of 32,768 tokens, the default
length of a prompt, has at most as many, since each is a token as a rule; the rest is for the JSON around it."""


def _check_modalities(value: Any) -> None:
    if value not in (None, ["text"], []):
        raise PydanticCustomError("modalities", 'must be ["text"]: only text output is supported')


TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class ChatRequest(SamplingFields, FormatFields, ThinkingFields, DroppedFields, UnsupportedFields):
    """The body of POST /v1/chat/completions. Outside `messages`, null selects the default.

    A field is obeyed, or refused with its name; what is accepted without effect cannot change the answer.
    """

    messages: Items[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str | None = Field(default=None, description="ignored: a host serves one model, which the response names")
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS, description="unless max_completion_tokens is set")
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    min_tokens: int | None = Field(
        default=None, ge=0, le=MAX_TOKENS, description="before, neither end tokens nor stop strings end the output"
    )
    ignore_eos: bool | None = Field(default=None, description="true: the model cannot end the output")
    logit_bias: dict[TokenKey, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=MAX_BIASES, description="what is added to the logits of tokens, by their ids"
    )
    stop_token_ids: Items[TokenId] | None = Field(
        default=None, max_length=MAX_STOP_TOKENS, description="tokens that end the output, beside those of the model"
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Items[Tool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice = Field(
        default=None, description="required or a function: the output after any reasoning is a call"
    )
    parallel_tool_calls: bool | None = Field(default=None, description="false: at most one call")
    user: str | None = None
    modalities: Annotated[
        None, BeforeValidator(_check_modalities, json_schema_input_type=list[Literal["text"]] | None)
    ] = None

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise combination_error("top_logprobs", "is only allowed when logprobs is true")
        if self.must_call and not self.tools:
            raise combination_error("tool_choice", "is only allowed with tools")
        if isinstance(self.tool_choice, NamedTool) and not self.chosen_tools:
            raise combination_error("tool_choice", "names no function of tools")
        if self.output_limit and (self.min_tokens or 0) > self.output_limit:
            raise combination_error("min_tokens", "is more than the output may have by max_tokens")
        self._check_grammar()
        return self

    def _check_grammar(self) -> None:
        form = self.content_format
        try:
            grammar = self.grammar  # kept, as long as the tools are there
        except UnsupportedSchema as error:
            field = "tools" if self.must_call or form is None else form.field
            raise combination_error(field, f"has a JSON schema that cannot be used: {error}") from error
        for field in ("min_tokens", "ignore_eos"):
            if grammar and getattr(self, field):
                reason = f"is not allowed with {grammar.param}, which says where the output ends"
                raise combination_error(field, reason)

    def engine_request(self) -> EngineRequest:
        """See ClientRequest."""
        sampling = self.sampling(
            max_tokens=self.output_limit,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            grammar=self.grammar,
        )
        return EngineRequest(
            self.messages,
            sampling,
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
    def output_limit(self) -> int | None:
        """The most tokens that the output may have; None leaves it to the release."""
        return self.max_completion_tokens or self.max_tokens

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
        form, tools = self.content_format, self.enabled_tools
        document = None if form is None else form.rule("document")
        single = self.parallel_tool_calls is False or isinstance(self.tool_choice, NamedTool)
        if self.must_call:
            return grammar_of_calls(self.chosen_tools, single=single)
        if form is not None:
            return grammar_of_calls(tools, single=single, document=document) if tools else form.grammar()
        if any(tool["function"].get("strict") for tool in tools):
            return grammar_of_strict_calls(tools, single=single)
        return None

    @property
    def enabled_tools(self) -> list[dict[str, Any]]:
        """The definitions of the tools that the prompt offers to the model."""
        return [tool.definition() for tool in self.tools or ()] if self.tool_choice != "none" else []


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
        raise validation_error(error, document) from error


def parse_document(document: dict[str, Any], max_structure: int = MAX_STRUCTURE) -> ChatRequest:
    """Validate a request that was parsed from JSON, by the same rules; raises ApiError 400 that names the field."""
    try:
        body = pydantic_core.to_json(document)
    except ValueError as error:
        raise invalid("the request contains a value that JSON cannot represent") from error
    return parse_request(body, max_structure)
