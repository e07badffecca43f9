"""The response to POST /v1/completions: one `text_completion`, or events. Texts are passed on as they are."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import TypedDict

from service.chat.engine_request import ChoiceItem, ResponseHead
from service.chat.output_parser import OutputParser
from service.chat.response import error_event, generated_tokens
from service.chat.usage import CompletionUsage, StreamUsage, UsageCounter
from service.engine import Delta, Finish, TokenLogprob

__all__ = ["CompletionsFormat", "TextCompletion"]


class TextLogprobs(TypedDict):
    """The tokens of a text, each with its log probability, the most likely ones, and its offset in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(TypedDict):
    """One of the `n` choices."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(TypedDict):
    """The response to a request that is not streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: CompletionUsage


@dataclass(frozen=True)
class CompletionsFormat:
    """The format of the response; see ResponseFormat and StreamUsage."""

    usage_at_end: bool = False
    usage_in_every_event: bool = False

    async def collect(
        self, items: AsyncGenerator[ChoiceItem, None], parsers: Sequence[OutputParser], head: ResponseHead
    ) -> TextCompletion:
        """See ResponseFormat."""
        texts = [_Text() for _ in parsers]
        finished: dict[int, Finish] = {}
        counter = _counter(len(parsers))
        async with aclosing(items):
            async for index, item in items:
                counter.add(index, item)
                if isinstance(item, Finish):
                    finished[index] = item
                else:
                    texts[index].add(item)
        choices: list[TextChoice] = [
            {
                "index": index,
                "text": "".join(text.pieces),
                "logprobs": text.logprobs(),
                "finish_reason": finished[index].reason,
            }
            for index, text in enumerate(texts)
        ]
        return {**_head(head), "choices": choices, "usage": counter.usage()}  # type: ignore[typeddict-item]

    async def encode(
        self,
        first: ChoiceItem,
        items: AsyncGenerator[ChoiceItem, None],
        parsers: Sequence[OutputParser],
        head: ResponseHead,
        request_id: str,
    ) -> AsyncGenerator[bytes, None]:
        """See ResponseFormat; an error ends the stream without [DONE]."""
        texts, unfinished = [_Text() for _ in parsers], len(parsers)
        usage = StreamUsage(_counter(len(parsers)), self.usage_at_end, self.usage_in_every_event)
        async with aclosing(items):
            index, item = first
            try:
                while True:
                    usage.add(index, item)
                    yield _event({**_head(head), "choices": [texts[index].choice(index, item)], **_usage_field(usage)})
                    unfinished -= isinstance(item, Finish)
                    if not unfinished:
                        break
                    index, item = await anext(items)
                if self.usage_at_end:
                    yield _event({**_head(head), "choices": [], "usage": usage.counter.usage()})
                yield b"data: [DONE]\n\n"
            except Exception as error:
                yield self.encode_error(error, request_id)

    def encode_error(self, error: Exception, request_id: str) -> bytes:
        """See ResponseFormat."""
        return error_event(error, request_id)


def _counter(choices: int) -> UsageCounter:
    return UsageCounter(choices, thinking=False, needs_open_tag=False)


def _usage_field(usage: StreamUsage) -> dict[str, Any]:
    if usage.in_every_event:
        return {"usage": usage.counter.usage()}
    return {"usage": None} if usage.at_end else {}


class _Text:
    """The text of a choice."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._length = 0
        self._tokens: list[tuple[TokenLogprob, int]] = []

    def add(self, delta: Delta) -> None:
        self._tokens += ((token, self._length) for token in delta.logprobs)
        self.pieces.append(delta.text)
        self._length += len(delta.text)

    def choice(self, index: int, item: Delta | Finish) -> dict[str, Any]:
        """Return what an event says of an item."""
        if isinstance(item, Finish):
            return {"index": index, "text": "", "logprobs": None, "finish_reason": item.reason}
        self._tokens.clear()
        self.pieces.clear()
        self.add(item)
        return {"index": index, "text": item.text, "logprobs": self.logprobs(), "finish_reason": None}

    def logprobs(self) -> TextLogprobs | None:
        """Return the log probabilities of the tokens since the last event; None if there are none."""
        if not self._tokens:
            return None
        tokens = generated_tokens([token for token, _ in self._tokens])
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [{other["token"]: other["logprob"] for other in token["top_logprobs"]} for token in tokens],
            "text_offset": [offset for _, offset in self._tokens],
        }


def _head(head: ResponseHead) -> dict[str, Any]:
    return {
        "id": f"cmpl-{head.number}",
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.version,
    }


def _event(document: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
