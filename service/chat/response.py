"""The response in OpenAI's format: one `chat.completion`, or server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from json.encoder import encode_basestring as quoted
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from service.chat.engine_request import ChoiceItem, ResponseHead
from service.chat.errors import ApiError, error_object, log_late, unexpected
from service.chat.output_parser import OutputParser
from service.chat.tool_calls import CallPiece, ToolCall, joined
from service.chat.usage import CompletionUsage, StreamUsage, UsageCounter
from service.engine import Delta, Finish, TokenLogprob

__all__ = ["ChatFormat", "Completion", "GeneratedToken", "error_event", "generated_tokens"]

FinishReason = Literal["stop", "length", "tool_calls"]

MIN_LOGPROB = -9999.0  # stands for minus infinity, which JSON cannot represent, as in OpenAI's API


class TokenProb(TypedDict):
    """A token and its log probability."""

    token: str
    bytes: list[int]
    logprob: float


class GeneratedToken(TokenProb):
    """A generated token and the most likely tokens at its position."""

    top_logprobs: list[TokenProb]


class Logprobs(TypedDict):
    """All generated tokens, including those of reasoning and tool calls."""

    content: list[GeneratedToken]
    refusal: None


class CalledFunction(TypedDict):
    """The function of a tool call; `arguments` is a JSON object encoded as text."""

    name: str
    arguments: str


class ResponseToolCall(TypedDict):
    """A tool call for the client to execute."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(TypedDict):
    """The assistant's message; `content` is null if there are only tool calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ResponseToolCall]]


class Choice(TypedDict):
    """One of the `n` choices."""

    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class Completion(TypedDict):
    """The response to a request that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: CompletionUsage


@dataclass(frozen=True)
class ChatFormat:
    """The format of the response to a chat request; see ResponseFormat, and StreamUsage for the last two fields."""

    thinking: bool
    usage_at_end: bool = False
    usage_in_every_event: bool = False

    async def collect(
        self, items: AsyncGenerator[ChoiceItem, None], parsers: Sequence[OutputParser], head: ResponseHead
    ) -> Completion:
        """See ResponseFormat."""
        counter = UsageCounter(len(parsers), thinking=self.thinking, needs_open_tag=False)
        return await _collect(items, parsers, _Head.of(head), counter)

    def encode(
        self,
        first: ChoiceItem,
        items: AsyncGenerator[ChoiceItem, None],
        parsers: Sequence[OutputParser],
        head: ResponseHead,
        request_id: str,
    ) -> AsyncGenerator[bytes, None]:
        """See ResponseFormat; an error ends the stream without [DONE]."""
        counter = UsageCounter(len(parsers), thinking=self.thinking, needs_open_tag=True)
        usage = StreamUsage(counter, self.usage_at_end, self.usage_in_every_event)
        return _encode(first, items, parsers, _Head.of(head), request_id, usage)

    def encode_error(self, error: Exception, request_id: str) -> bytes:
        """See ResponseFormat."""
        return error_event(error, request_id)


@dataclass(frozen=True)
class _Head:
    """The fields that a completion, or every event of a stream, begins with."""

    id: str
    created: int
    model: str
    fingerprint: str

    @classmethod
    def of(cls, head: ResponseHead) -> _Head:
        return cls(f"chatcmpl-{head.number}", head.created, head.model, head.version)

    def completion(self, choices: list[Choice], usage: CompletionUsage) -> Completion:
        """Return the completion."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            "usage": usage,
        }

    @property
    def event_before_choices(self) -> str:
        """The beginning of an event of a stream, up to its choices, which are encoded JSON."""
        return (
            f'data: {{"id":{quoted(self.id)},"object":"chat.completion.chunk","created":{self.created},'
            f'"model":{quoted(self.model)},"system_fingerprint":{quoted(self.fingerprint)},"choices":['
        )

    @staticmethod
    def event_after_choices(usage: str) -> str:
        """Return the rest of the event; `usage` is the field with a comma before it, or empty."""
        return f"]{usage}}}\n\n"


async def _collect(
    items: AsyncGenerator[ChoiceItem, None], parsers: Sequence[OutputParser], head: _Head, counter: UsageCounter
) -> Completion:
    """Collect the engine's items into one completion with a choice for each parser."""
    texts: list[list[str]] = [[] for _ in parsers]
    tokens: list[list[GeneratedToken]] = [[] for _ in parsers]
    finished: dict[int, Finish] = {}
    async with aclosing(items):
        async for index, item in items:
            counter.add(index, item)
            if isinstance(item, Finish):
                finished[index] = item
            else:
                texts[index].append(item.text)
                tokens[index] += generated_tokens(item.logprobs)
    choices = [
        _choice(index, "".join(texts[index]), tokens[index], parser, finished[index].reason)
        for index, parser in enumerate(parsers)
    ]
    return head.completion(choices, counter.usage())


def _choice(
    index: int, text: str, tokens: list[GeneratedToken], parser: OutputParser, reason: Literal["stop", "length"]
) -> Choice:
    parsed = parser.parse(text, is_complete=reason == "stop")
    message: AssistantMessage = {"role": "assistant", "content": parsed.content, "refusal": None}
    if parsed.reasoning:
        message["reasoning_content"] = parsed.reasoning
    if parsed.calls:
        message["content"] = parsed.content or None
        message["tool_calls"] = [_tool_call(call) for call in joined(parsed.calls)]
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": tokens, "refusal": None} if tokens else None,
        "finish_reason": "tool_calls" if parsed.calls and reason == "stop" else reason,
    }


async def _encode(
    first: ChoiceItem,
    items: AsyncGenerator[ChoiceItem, None],
    parsers: Sequence[OutputParser],
    head: _Head,
    request_id: str,
    usage: StreamUsage,
) -> AsyncGenerator[bytes, None]:
    """Encode the engine's items, `first` before the others, as server-sent events, at most one chunk for each item.

    An error ends the stream with an error object as the last event, without [DONE].
    """
    encoders = [_ChoiceEncoder(head, index, parser, usage) for index, parser in enumerate(parsers)]
    unfinished = len(encoders)
    usage.add(*first)
    begin = b"".join(encoder.begin() for encoder in encoders)
    async with aclosing(items):
        index, item = first
        try:
            while True:
                if isinstance(item, Finish):
                    unfinished -= 1
                    if chunk := begin + encoders[index].end(item.reason):
                        if not unfinished:
                            yield chunk + _last_events(head, usage)
                            return
                        yield chunk
                        begin = b""
                elif chunk := begin + encoders[index].feed(item):
                    yield chunk
                    begin = b""
                index, item = await anext(items)
                usage.add(index, item)
        except Exception as error:
            yield error_event(error, request_id)


def error_event(error: Exception, request_id: str) -> bytes:
    """Encode the error object that ends a stream; logs an error that is no ApiError."""
    if isinstance(error, ApiError):
        document = error_object(error.status, str(error), error.param, error.code)
    else:
        log_late(error, request_id)
        document = unexpected(request_id)
    return f"data: {_json(document)}\n\n".encode()


class _ChoiceEncoder:
    """Encodes the events of one choice. Constant parts are encoded once, because nearly every token has an event."""

    def __init__(self, head: _Head, index: int, parser: OutputParser, usage: StreamUsage) -> None:
        self._parser = parser
        self._usage = usage
        self._has_calls = False
        self._before = f'{head.event_before_choices}{{"index":{index},"delta":'
        self._after = "}" + head.event_after_choices(',"usage":null' if usage.at_end else "")
        self._plain_before = f'{self._before}{{"content":'.encode()
        self._plain_after = f'}},"logprobs":null,"finish_reason":null{self._after}'.encode()

    def begin(self) -> bytes:
        return self._event('{"role":"assistant","content":""}')

    def feed(self, delta: Delta) -> bytes:
        reasoning, content, calls = self._parser.feed(delta.text)
        if content and not (reasoning or calls or delta.logprobs or self._usage.in_every_event):
            return self._plain_before + quoted(content).encode() + self._plain_after
        return self._events(reasoning, content, calls, generated_tokens(delta.logprobs))

    def end(self, reason: FinishReason) -> bytes:
        last = self._events(*self._parser.flush(is_complete=reason == "stop"), [])
        return last + self._event("{}", reason="tool_calls" if self._has_calls and reason == "stop" else reason)

    def _events(self, reasoning: str, content: str, calls: Sequence[CallPiece], tokens: list[GeneratedToken]) -> bytes:
        """Encode what is not empty; logprobs go with the first event, or with an empty content if there is no other."""
        deltas: list[dict[str, Any]] = []
        if reasoning:
            deltas.append({"reasoning_content": reasoning})
        if content or (tokens and not reasoning and not calls):
            deltas.append({"content": content})
        if calls:
            deltas += ({"tool_calls": [_tool_call_piece(piece)]} for piece in _merged(calls))
            self._has_calls = True
        chunk = b""
        for delta in deltas:
            chunk += self._event(_json(delta), tokens)
            tokens = []
        return chunk

    def _event(self, delta: str, tokens: Sequence[GeneratedToken] = (), reason: FinishReason | None = None) -> bytes:
        logprobs = _json({"content": tokens, "refusal": None}) if tokens else "null"
        after = self._after
        if self._usage.in_every_event:
            after = "}" + _Head.event_after_choices(_usage_field(self._usage))
        return f'{self._before}{delta},"logprobs":{logprobs},"finish_reason":{_json(reason)}{after}'.encode()


def _last_events(head: _Head, usage: StreamUsage) -> bytes:
    event = head.event_before_choices + head.event_after_choices(_usage_field(usage)) if usage.at_end else ""
    return f"{event}data: [DONE]\n\n".encode()


def _usage_field(usage: StreamUsage) -> str:
    return f',"usage":{_json(usage.counter.usage())}'


def _tool_call(call: ToolCall) -> ResponseToolCall:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _tool_call_piece(piece: CallPiece) -> dict[str, Any]:
    if piece.name is None:
        return {"index": piece.number, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.number, "id": piece.id, "type": "function", "function": function}


def _merged(pieces: Sequence[CallPiece]) -> list[CallPiece]:
    """Join the pieces of one call that come at once."""
    found: list[CallPiece] = []
    for piece in pieces:
        if found and piece.name is None and piece.number == found[-1].number:
            found[-1] = found[-1]._replace(arguments=found[-1].arguments + piece.arguments)
        else:
            found.append(piece)
    return found


def generated_tokens(logprobs: Sequence[TokenLogprob]) -> list[GeneratedToken]:
    """Return tokens with their log probabilities as OpenAI's API has them."""
    return [
        {**_token_prob(token.data, token.logprob), "top_logprobs": [_token_prob(*other) for other in token.top]}
        for token in logprobs
    ]


def _token_prob(data: bytes, logprob: float) -> TokenProb:
    return {"token": data.decode(errors="replace"), "bytes": list(data), "logprob": max(MIN_LOGPROB, logprob)}


def _json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
