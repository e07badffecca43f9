"""The body of POST /v1/responses, and its conversion to a chat request."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from service.chat.engine_request import ClientRequest, EngineRequest
from service.chat.formats import JsonObjectFormat, JsonSchema, JsonSchemaFormat, TextFormat
from service.chat.known_fields import DroppedFields
from service.chat.messages import ImagePart, Message, TextPart
from service.chat.request import MAX_MESSAGES, ChatRequest
from service.chat.request_model import Dropped, Items, Neutral, RequestModel, Unsupported
from service.chat.sampling_fields import MAX_TOKENS
from service.chat.tool_definitions import Function, Tool
from service.responses.input_items import InputItem, messages_of
from service.responses.response import ResponsesFormat

__all__ = ["ResponsesRequest"]

LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")  # agents ask for the latter always; here it is not encrypted
MAX_ECHO = 1 << 16  # characters of tools that a response repeats: they would stay in memory while it is written
FIELDS = {"messages": "input", "response_format": "text.format"}
"""What the fields of a chat request are called here; the others have the same names."""


class FunctionTool(Function):
    """A function that the model may call."""

    type: Literal["function"]

    def tool(self) -> Tool:
        """Return the tool of a chat request."""
        return Tool(type="function", function=Function.model_construct(**self.model_dump(exclude={"type"})))


class SchemaFormat(JsonSchema):
    """JSON that conforms to a schema."""

    type: Literal["json_schema"]


class TextOptions(RequestModel):
    """What the text of the answer is."""

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Annotated[None, Neutral(("medium",))] = None


class Reasoning(RequestModel):
    """Whether the model reasons before it answers: not with the effort `none` or `minimal`. There are no summaries."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Dropped = None
    generate_summary: Dropped = None


class ChosenFunction(RequestModel):
    """The function that the model must call."""

    type: Literal["function"]
    name: str


ToolChoice = Literal["none", "auto", "required"] | ChosenFunction | None


class StreamOptions(RequestModel):
    """Options of a stream, whose events have no obfuscation."""

    include_obfuscation: Dropped = None


def _wrap_text(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _check_tool(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") != "function":
        raise PydanticCustomError("tool_type", 'must be of type "function": this server has no tools of its own')
    return value


def _check_store(value: Any) -> None:
    if value:
        raise PydanticCustomError("store", "must be false: responses are not stored here")


def _check_reference(value: Any) -> None:
    if value is not None:
        raise PydanticCustomError(
            "stateless", "is not supported: responses are not stored here; send the whole conversation in input"
        )


def _check_include(value: Any) -> Any:
    if isinstance(value, list) and (
        other := [one for one in value if one not in (LOGPROBS, "reasoning.encrypted_content")]
    ):
        raise PydanticCustomError("include", "has {name}, which is not available here", {"name": repr(other[0])[:80]})
    return value


def _check_truncation(value: Any) -> Any:
    if value == "auto":
        raise PydanticCustomError("truncation", 'must be "disabled": the conversation is not shortened')
    return value


Stateless = Annotated[None, BeforeValidator(_check_reference), Field(description="not supported: nothing is stored")]


class ResponsesRequest(ClientRequest, DroppedFields):
    """The body of POST /v1/responses. Outside `input`, null selects the default."""

    input: Annotated[Items[InputItem], BeforeValidator(_wrap_text, json_schema_input_type=list[InputItem] | str)] = (
        Field(min_length=1, max_length=MAX_MESSAGES, description="the conversation, or the text of a user's message")
    )
    instructions: str | None = Field(default=None, description="a system message before the conversation")
    model: str | None = Field(default=None, description="ignored: a host serves one model, which the response names")
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Items[Annotated[FunctionTool, BeforeValidator(_check_tool)]] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = Field(default=None, description="false: at most one call")
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: Annotated[list[str] | None, BeforeValidator(_check_include)] = None
    store: Annotated[None, BeforeValidator(_check_store)] = Field(default=None, description="not supported")
    previous_response_id: Stateless = None
    conversation: Stateless = None
    prompt: Unsupported = None
    background: Unsupported = None
    max_tool_calls: Unsupported = None
    context_management: Unsupported = None
    moderation: Unsupported = None
    truncation: Annotated[Literal["auto", "disabled"] | None, BeforeValidator(_check_truncation)] = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)  # type: ignore[assignment]  # is returned
    user: str | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponsesRequest:
        try:
            self._chat  # noqa: B018  (kept)
        except ValidationError as error:
            detail = error.errors(include_url=False, include_input=False)[0]
            name = str(detail["loc"][0]) if detail["loc"] else detail.get("ctx", {}).get("param", "")
            param = FIELDS.get(name, name)
            reason = detail["msg"].replace(name, param, 1)
            raise PydanticCustomError("combination", "{reason}", {"param": param, "reason": reason}) from error
        return self

    def engine_request(self) -> EngineRequest:
        """See ClientRequest."""
        asked = self._chat.engine_request()
        return asked.called("input", [path for path, _ in self._messages])

    def answer_format(self) -> ResponsesFormat:
        """See ClientRequest."""
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools or ()]
        chosen, form = self.tool_choice, self.text.format if self.text else None
        return ResponsesFormat(
            {
                "instructions": self.instructions,
                "max_output_tokens": self.max_output_tokens,
                "metadata": self.metadata or {},
                "parallel_tool_calls": self.parallel_tool_calls is not False,
                "reasoning": {"effort": self.reasoning.effort if self.reasoning else None, "summary": None},
                "temperature": self.temperature,
                "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
                "tool_choice": chosen.model_dump() if isinstance(chosen, ChosenFunction) else chosen or "auto",
                "tools": tools if len(json.dumps(tools)) <= MAX_ECHO else [],
                "top_logprobs": self.top_logprobs or 0,
                "top_p": self.top_p,
                "user": self.user,
            },
            thinking=self._chat.thinking is not False,
        )

    @cached_property
    def _messages(self) -> list[tuple[str, Message]]:
        found = list(messages_of(self.input))
        if not self.instructions:
            return found
        content: list[TextPart | ImagePart] = [TextPart(type="text", text=self.instructions)]
        return [("instructions", Message.model_construct(role="system", content=content)), *found]

    @cached_property
    def _chat(self) -> ChatRequest:
        """The same as a chat request; raises ValidationError."""
        return ChatRequest(
            messages=[message for _, message in self._messages],
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=LOGPROBS in (self.include or ()) or self.top_logprobs is not None or None,
            top_logprobs=self.top_logprobs,
            response_format=_format(self.text),
            tools=[tool.tool() for tool in self.tools] if self.tools else None,
            tool_choice=_tool_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls,
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
        )


def _tool_choice(chosen: ToolChoice) -> Any:
    if isinstance(chosen, ChosenFunction):
        return {"type": "function", "function": {"name": chosen.name}}
    return chosen


def _format(text: TextOptions | None) -> Any:
    chosen = text.format if text else None
    if isinstance(chosen, SchemaFormat):
        schema = JsonSchema.model_construct(**{name: getattr(chosen, name) for name in JsonSchema.model_fields})
        return JsonSchemaFormat(type="json_schema", json_schema=schema)
    return chosen
