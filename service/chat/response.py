"""The answer as OpenAI writes it: in one piece, or as server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from json.encoder import encode_basestring as quoted
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from service.chat.errors import ApiError, ErrorBody, error_object, unexpected
from service.chat.output_parser import Reader
from service.chat.tool_calls import ToolCall
from service.engine import Delta, Finish, TokenLogprob

__all__ = ["Completion", "Head", "Item", "pieces", "whole"]

log = logging.getLogger("service")

Item = Delta | Finish
Indexed = tuple[int, Item]  # of which choice
Reason = Literal["stop", "length", "tool_calls"]

IMPOSSIBLE = -9999.0  # OpenAI's number for the logarithm of nothing, which JSON cannot carry


class Likely(TypedDict):
    """A token and how likely it was."""

    token: str
    bytes: list[int]
    logprob: float


class Token(Likely):
    """A token of the answer, and the likeliest ones in its place."""

    top_logprobs: list[Likely]


class Logprobs(TypedDict):
    """Every token that the model said: of the thought and of calls too."""

    content: list[Token]
    refusal: None


class CalledFunction(TypedDict):
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str


class Called(TypedDict):
    """A call that the client is asked to make."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Answer(TypedDict):
    """The assistant's message. The content is null where there are only calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Called]]


class Choice(TypedDict):
    """One of `n` answers."""

    index: int
    message: Answer
    logprobs: Logprobs | None
    finish_reason: Reason


class UsageCount(TypedDict):
    """Tokens: those of the conversation once, those of all answers together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(TypedDict):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: UsageCount


@dataclass(frozen=True)
class Head:
    """What all pieces of one answer begin with."""

    id: str
    created: int
    model: str
    fingerprint: str

    def completion(self, choices: list[Choice], usage: UsageCount) -> Completion:
        """Make the whole answer."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            "usage": usage,
        }

    def event(self, choices: str, usage: str) -> str:
        """Make one event of a stream around JSON that was rendered already; `usage` begins with a comma or is empty."""
        return (
            f'data: {{"id":{quoted(self.id)},"object":"chat.completion.chunk","created":{self.created},'
            f'"model":{quoted(self.model)},"system_fingerprint":{quoted(self.fingerprint)},"choices":[{choices}]{usage}}}\n\n'
        )


async def whole(items: AsyncGenerator[Indexed, None], readers: Sequence[Reader], head: Head) -> Completion:
    """Collect the answers into one `chat.completion`."""
    texts: list[list[str]] = [[] for _ in readers]
    tokens: list[list[Token]] = [[] for _ in readers]
    finished: dict[int, Finish] = {}
    async with aclosing(items):
        async for index, item in items:
            if isinstance(item, Finish):
                finished[index] = item
            else:
                texts[index].append(item.text)
                tokens[index] += _tokens(item.logprobs)
    choices = [
        _choice(index, "".join(texts[index]), tokens[index], reader, finished[index].reason)
        for index, reader in enumerate(readers)
    ]
    return head.completion(choices, _usage(finished.values()))


def _choice(index: int, text: str, tokens: list[Token], reader: Reader, reason: Literal["stop", "length"]) -> Choice:
    reply = reader.whole(text)
    message: Answer = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["content"] = reply.content or None
        message["tool_calls"] = [_called(call) for call in reply.calls]
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": tokens, "refusal": None} if tokens else None,
        "finish_reason": "tool_calls" if reply.calls and reason == "stop" else reason,
    }


async def pieces(
    first: Indexed,
    items: AsyncGenerator[Indexed, None],
    readers: Sequence[Reader],
    head: Head,
    request_id: str,
    *,
    usage: bool,
) -> AsyncGenerator[bytes, None]:
    """Write the answers as server-sent events, one piece of bytes for each of the engine's; an error is the last."""
    writers = [_Writer(head, index, reader, usage=usage) for index, reader in enumerate(readers)]
    finished: list[Finish] = []
    begin = b"".join(writer.begin() for writer in writers)
    async with aclosing(items):
        index, item = first
        try:
            while True:
                if isinstance(item, Finish):
                    finished.append(item)
                    if written := begin + writers[index].end(item.reason):
                        if len(finished) == len(writers):
                            yield written + _last(head, finished, usage=usage)
                            return
                        yield written
                        begin = b""
                elif written := begin + writers[index].feed(item):
                    yield written
                    begin = b""
                index, item = await anext(items)
        except ApiError as error:
            yield _event(error_object(error.status, str(error), error.param, error.code))
        except Exception:
            log.exception("request %s failed in its stream", request_id)
            yield _event(unexpected(request_id))


class _Writer:
    """Writes the events of one choice. What never changes is rendered once, for nearly every token has an event."""

    def __init__(self, head: Head, index: int, reader: Reader, *, usage: bool) -> None:
        self._reader = reader
        self._calls = 0
        before, _, after = head.event("\0", ',"usage":null' if usage else "").partition("\0")
        self._before = f'{before}{{"index":{index},"delta":'
        self._after = f"}}{after}"
        self._plain_before = f'{self._before}{{"content":'.encode()
        self._plain_after = f'}},"logprobs":null,"finish_reason":null{self._after}'.encode()

    def begin(self) -> bytes:
        return self._event('{"role":"assistant","content":""}')

    def feed(self, delta: Delta) -> bytes:
        thought, content, calls = self._reader.feed(delta.text)
        if content and not (thought or calls or delta.logprobs):
            return self._plain_before + quoted(content).encode() + self._plain_after
        return self._events(thought, content, calls, _tokens(delta.logprobs))

    def end(self, reason: Reason) -> bytes:
        last = self._events(*self._reader.end(), [])
        return last + self._event("{}", reason="tool_calls" if self._calls and reason == "stop" else reason)

    def _events(self, thought: str, content: str, calls: Sequence[ToolCall], tokens: list[Token]) -> bytes:
        """Write what is there, logprobs with the first of it, or with an empty content."""
        deltas: list[dict[str, Any]] = []
        if thought:
            deltas.append({"reasoning_content": thought})
        if content or (tokens and not thought and not calls):
            deltas.append({"content": content})
        if calls:
            numbered = enumerate(calls, self._calls)
            deltas.append({"tool_calls": [{"index": number, **_called(call)} for number, call in numbered]})
            self._calls += len(calls)
        written = b""
        for delta in deltas:
            written += self._event(_json(delta), tokens)
            tokens = []
        return written

    def _event(self, delta: str, tokens: Sequence[Token] = (), reason: Reason | None = None) -> bytes:
        logprobs = _json({"content": tokens, "refusal": None}) if tokens else "null"
        return f'{self._before}{delta},"logprobs":{logprobs},"finish_reason":{_json(reason)}{self._after}'.encode()


def _last(head: Head, finished: Sequence[Finish], *, usage: bool) -> bytes:
    counted = head.event("", f',"usage":{_json(_usage(finished))}').encode() if usage else b""
    return counted + b"data: [DONE]\n\n"


def _usage(finished: Iterable[Finish]) -> UsageCount:
    finished = list(finished)
    prompt, completion = finished[0].prompt_tokens, sum(finish.completion_tokens for finish in finished)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _called(call: ToolCall) -> Called:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _tokens(found: Sequence[TokenLogprob]) -> list[Token]:
    return [
        {**_likely(token.data, token.logprob), "top_logprobs": [_likely(*other) for other in token.top]}
        for token in found
    ]


def _likely(data: bytes, logprob: float) -> Likely:
    return {"token": data.decode(errors="replace"), "bytes": list(data), "logprob": max(IMPOSSIBLE, logprob)}


def _json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _event(document: ErrorBody) -> bytes:
    return f"data: {_json(document)}\n\n".encode()
