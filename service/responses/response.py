"""The response to POST /v1/responses: one document, or events that end with it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import TypedDict

from service.chat.engine_request import ChoiceItem, ResponseHead
from service.chat.errors import ApiError, log_late, unexpected
from service.chat.output_parser import OutputParser
from service.chat.response import GeneratedToken, generated_tokens
from service.chat.usage import CompletionUsage, UsageCounter
from service.engine import Finish
from service.responses.output_items import Event, OutputItems

__all__ = ["Response", "ResponsesFormat"]

_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}  # of OpenAI's list, by HTTP status


class InputDetails(TypedDict):
    """What is known of the tokens of the prompt; nothing is cached."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(TypedDict):
    """What is known of the generated tokens."""

    reasoning_tokens: int


class ResponsesUsage(TypedDict):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(TypedDict):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class Failure(TypedDict):
    """Why a response has failed, in a stream."""

    code: str
    message: str


class Response(TypedDict):
    """The response. Fields of the request that do not depend on the answer are repeated."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponsesUsage | None
    error: Failure | None
    incomplete_details: Incomplete | None
    background: Literal[False]
    previous_response_id: None
    store: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    user: str | None


@dataclass(frozen=True)
class ResponsesFormat:
    """The format of the response; see ResponseFormat. `echo`: the fields of the request that it repeats."""

    echo: Mapping[str, Any]
    thinking: bool

    async def collect(
        self, items: AsyncGenerator[ChoiceItem, None], parsers: Sequence[OutputParser], head: ResponseHead
    ) -> Mapping[str, Any]:
        """See ResponseFormat."""
        texts: list[str] = []
        tokens: list[GeneratedToken] = []
        output, counter = OutputItems(), UsageCounter(1, thinking=self.thinking, needs_open_tag=False)
        async with aclosing(items):
            async for index, item in items:
                counter.add(index, item)
                if isinstance(item, Finish):
                    finish = item
                else:
                    texts.append(item.text)
                    tokens += generated_tokens(item.logprobs)
        parsed = parsers[0].parse("".join(texts), is_complete=finish.reason == "stop")
        for _ in (*output.feed(parsed, tokens), *output.close(_status(finish))):
            pass  # a whole response has no events
        return self._ended(head, output, finish, counter)

    async def encode(
        self,
        first: ChoiceItem,
        items: AsyncGenerator[ChoiceItem, None],
        parsers: Sequence[OutputParser],
        head: ResponseHead,
        request_id: str,
    ) -> AsyncGenerator[bytes, None]:
        """See ResponseFormat; the last event holds the whole response, which has failed if there was an error."""
        [parser] = parsers
        events, output = _Encoder(), OutputItems()
        counter = UsageCounter(1, thinking=self.thinking, needs_open_tag=True)
        begun = self._response(head, "in_progress")
        begin = events.encode(
            {"type": "response.created", "response": begun}, {"type": "response.in_progress", "response": begun}
        )
        async with aclosing(items):
            _, item = first
            try:
                while not isinstance(item, Finish):
                    counter.add(0, item)
                    found = output.feed(parser.feed(item.text), generated_tokens(item.logprobs))
                    if chunk := begin + events.encode(*found):
                        yield chunk
                        begin = b""
                    _, item = await anext(items)
                counter.add(0, item)
                last = parser.flush(is_complete=item.reason == "stop")
                ended = [*output.feed(last), *output.close(_status(item))]
                response = self._ended(head, output, item, counter)
                kind = f"response.{response['status']}"
                yield begin + events.encode(*ended, {"type": kind, "response": response})
            except Exception as error:
                yield begin + events.encode(self._failed(head, output, *_failure(error, request_id)))

    def encode_error(self, error: Exception, request_id: str) -> bytes:
        """See ResponseFormat."""
        code, message = _failure(error, request_id)
        return _Encoder().encode({"type": "error", "code": code, "message": message, "param": None})

    def _response(self, head: ResponseHead, status: str, **more: Any) -> dict[str, Any]:
        return {
            "id": f"resp_{head.number}",
            "object": "response",
            "created_at": head.created,
            "status": status,
            "model": head.model,
            "output": [],
            "usage": None,
            "error": None,
            "incomplete_details": None,
            "background": False,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            **self.echo,
            **more,
        }

    def _ended(self, head: ResponseHead, output: OutputItems, finish: Finish, counter: UsageCounter) -> dict[str, Any]:
        status = _status(finish)
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return self._response(
            head, status, output=output.items, usage=_usage(counter.usage()), incomplete_details=incomplete
        )

    def _failed(self, head: ResponseHead, output: OutputItems, code: str, message: str) -> Event:
        error = {"code": code, "message": message}
        return {"type": "response.failed", "response": self._response(head, "failed", output=output.items, error=error)}


class _Encoder:
    """Numbers and encodes events."""

    def __init__(self) -> None:
        self._number = 0

    def encode(self, *events: Event) -> bytes:
        """Return server-sent events."""
        found = []
        for event in events:
            text = json.dumps({**event, "sequence_number": self._number}, ensure_ascii=False, separators=(",", ":"))
            found.append(f"event: {event['type']}\ndata: {text}\n\n")
            self._number += 1
        return "".join(found).encode()


def _status(finish: Finish) -> Literal["completed", "incomplete"]:
    return "completed" if finish.reason == "stop" else "incomplete"


def _failure(error: Exception, request_id: str) -> tuple[str, str]:
    """Return the code and the message of an error; logs one that is no ApiError."""
    if isinstance(error, ApiError):
        return _CODES.get(error.status, "server_error"), str(error)
    log_late(error, request_id)
    return "server_error", unexpected(request_id)["error"]["message"]


def _usage(counts: CompletionUsage) -> ResponsesUsage:
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": counts["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": counts["total_tokens"],
    }
