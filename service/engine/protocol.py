"""What the HTTP side and the engine know of each other: a conversation goes in, an answer comes out in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

__all__ = [
    "Delta",
    "Engine",
    "Finish",
    "Priority",
    "PromptTooLong",
    "Refused",
    "Sampling",
    "TokenLogprob",
    "Usage",
    "WaitedTooLong",
]

Priority = Literal["interactive", "batch"]


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token; None leaves it to the checkpoint's generation_config or the release."""

    max_tokens: int | None = None
    temperature: float | None = None  # 0: always the likeliest
    top_p: float | None = None
    top_k: int | None = None  # 0 and -1: all
    min_p: float | None = None  # of the likeliest token's probability
    repetition_penalty: float | None = None  # over prompt and answer; 1: none
    presence_penalty: float = 0.0  # over the answer, as OpenAI defines it
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many of the likeliest tokens to report beside the chosen one; None: no report
    json_schema: str | None = None  # the answer, after any reasoning, is JSON that follows this schema


@dataclass(frozen=True)
class TokenLogprob:
    """One token of the answer and the likeliest ones in its place, likeliest first, before any penalty."""

    data: bytes  # of the token; not always whole characters
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of the answer: whole characters, and the tokens that became text with it.

    The text is empty only when `logprobs` is not: tokens whose text is no part of the answer, such as its end.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finish:
    """The end of an answer. `completion_tokens` counts the one that ended it, `prompt_tokens` those of images."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class Refused(ValueError):
    """The request can never be answered as it is; the text says why, and `param` names the field at fault."""

    param = "messages"


class PromptTooLong(Refused):
    """The conversation, images included, is more than the engine takes; the text gives both numbers, in tokens."""


class WaitedTooLong(Exception):  # says more than an Error at its end would
    """The request was in the queue for as long as the settings allow, and no row became free."""


@dataclass(frozen=True)
class Usage:
    """What the engine does now. `kv_tokens` of `kv_capacity` tokens of cache are promised to running requests."""

    running: int
    waiting: int
    kv_tokens: int
    kv_capacity: int


class Engine(Protocol):
    """What the routes need of an engine."""

    def stream(
        self,
        messages: list[dict[str, Any]],
        sampling: Sampling,
        *,
        thinking: bool | None = None,
        tools: Sequence[dict[str, Any]] = (),
        priority: Priority = "interactive",
    ) -> AsyncIterator[Delta | Finish]:
        """Answer a conversation: Deltas, then one Finish; raises Refused and WaitedTooLong.

        A message is `{"role", "content"}` and whatever else the chat template knows (`tool_calls`,
        `reasoning_content`, …); the content a string, or parts `{"type": "text", "text"}` and
        `{"type": "image", "image": PIL.Image}`. `tools` are OpenAI's definitions, rendered by the template. A request
        of priority `batch` runs only where no interactive one wants the row. Closing the iterator, or cancelling who
        awaits it, frees the row within two steps.
        """
        ...

    def usage(self) -> Usage:
        """Tell what the engine does now."""
        ...

    def answering(self) -> bool:
        """Tell whether the engine lives: False when it has work and has given no sign for too long."""
        ...

    def close(self) -> None:
        """End all work; streams that are not finished raise RuntimeError."""
        ...
