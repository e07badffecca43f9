"""Counting of a request's tokens while its choices are generated."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import TypedDict

from service.chat.reasoning import CLOSE_TAG, OPEN_TAG
from service.engine import Delta, Finish

__all__ = ["CompletionUsage", "ReasoningTokens", "StreamUsage", "UsageCounter"]


class CompletionTokensDetails(TypedDict):
    """Parts of the completion's tokens; `reasoning_tokens` are those up to and with `</think>`."""

    reasoning_tokens: int


class CompletionUsage(TypedDict):
    """Token counts: those of the prompt once, those of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails


class ReasoningTokens:
    """Counts the tokens of one output's reasoning: up to and with the first `</think>`, or all if that does not come.

    Which outputs have reasoning is as in reasoning.py; `needs_open_tag` is for streams, where it is decided at the
    first character. A delta that completes `</think>` counts as a whole: it has other tokens than those up to the tag
    only if text was held back, which might have begun a stop string of the request.
    """

    def __init__(self, *, thinking: bool, needs_open_tag: bool) -> None:
        self._needs_open_tag = needs_open_tag
        self._has_open_tag: bool | None = None  # None: not decided
        self._has_close_tag = False
        self._is_over = not thinking
        self._tokens = 0
        self._last = ""  # the beginning until that is decided, then what may be a part of `</think>`

    def add(self, text: str, tokens: int) -> None:
        """Add a delta's text and the number of its tokens."""
        if self._is_over:
            return
        self._tokens += tokens
        text = self._last + text
        if self._has_open_tag is None:
            text = text.lstrip()
            if text.startswith(OPEN_TAG) or not OPEN_TAG.startswith(text):
                self._has_open_tag = text.startswith(OPEN_TAG)
        self._has_close_tag = CLOSE_TAG in text
        self._is_over = self._has_close_tag or (self._needs_open_tag and self._has_open_tag is False)
        self._last = text if self._has_open_tag is None else text[1 - len(CLOSE_TAG) :]

    def count(self, total: int) -> int:
        """Return the number so far, of an output of `total` tokens."""
        if self._has_close_tag and (self._has_open_tag or not self._needs_open_tag):
            return self._tokens
        return total if self._has_open_tag and not self._is_over else 0


class UsageCounter:
    """Counts the tokens of a request with a number of choices; see ReasoningTokens for the other arguments."""

    def __init__(self, choices: int, *, thinking: bool, needs_open_tag: bool) -> None:
        self._prompt = 0
        self._completion = [0] * choices
        self._reasoning = [ReasoningTokens(thinking=thinking, needs_open_tag=needs_open_tag) for _ in range(choices)]

    def add(self, index: int, item: Delta | Finish) -> None:
        """Add an item of the choice with that index; its Finish has the number of all its tokens."""
        self._prompt = item.prompt_tokens
        if isinstance(item, Finish):
            self._completion[index] = item.completion_tokens
        else:
            self._completion[index] += item.tokens
            self._reasoning[index].add(item.text, item.tokens)

    def usage(self) -> CompletionUsage:
        """Return the counts so far."""
        completion = sum(self._completion)
        reasoning = sum(one.count(total) for one, total in zip(self._reasoning, self._completion, strict=True))
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": completion,
            "total_tokens": self._prompt + completion,
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }


@dataclass(frozen=True)
class StreamUsage:
    """Where a stream has its usage: in an event of its own at the end, and so far in every other event."""

    counter: UsageCounter
    at_end: bool = False
    in_every_event: bool = False

    def add(self, index: int, item: Delta | Finish) -> None:
        """Count an item, if that is used."""
        if self.at_end or self.in_every_event:
            self.counter.add(index, item)
