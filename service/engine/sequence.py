"""One request while it is answered: what went in, what came out, and where it stands."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.engine.detokenizer import Answer
from service.engine.grammar import Constraint
from service.engine.prompt import Prompt
from service.engine.protocol import Delta, Finish, Priority
from service.engine.sampler import Choice

__all__ = ["Event", "Sequence"]

Event = Delta | Finish | BaseException

_numbers = itertools.count()


@dataclass(eq=False)
class Sequence:
    """A prompt and the answer to it; the scheduler gives it a row of the cache while it runs.

    The cache holds the first `cached` of its tokens. While that is all but the last one, the sequence decodes; while
    more are missing, it is in prefill, which also is how a sequence that lost its row comes back.
    """

    prompt: Prompt
    choice: Choice
    answer: Answer
    limit: int  # tokens of the answer
    emit: Callable[[Event], None] = lambda _: None
    priority: Priority = "interactive"
    constraint: Constraint | None = None
    seconds: float = float("inf")  # that the answer may take, from its first row on
    wait_until: float = float("inf")  # monotonic seconds; without a row by then it fails
    deadline: float = float("inf")  # monotonic seconds, once it has had a row
    cancelled: bool = False  # set from any thread, once
    features: Any = None  # of all its pictures: (image tokens, hidden), on the device
    tokens: list[int] = field(default_factory=list)  # of the answer
    cached: int = 0
    row: int = -1
    ended: bool = False
    number: int = field(default_factory=lambda: next(_numbers))  # grows with age of arrival
    arrived: float = field(default_factory=time.monotonic)

    @property
    def length(self) -> int:
        """Prompt and answer so far, in tokens."""
        return self.prompt.tokens + len(self.tokens)

    @property
    def most(self) -> int:
        """The greatest length it can reach, in tokens."""
        return self.prompt.tokens + self.limit

    @property
    def missing(self) -> int:
        """How many tokens the next forward passes must still take in before it says another one."""
        return self.length - self.cached

    def ids(self, start: int, end: int) -> list[int]:
        """The token ids at these indices of prompt and answer."""
        prompt = self.prompt.tokens
        if start >= prompt:
            return self.tokens[start - prompt : end - prompt]
        head: list[int] = self.prompt.ids[start:end].tolist()
        return head + self.tokens[: max(0, end - prompt)]

    def push(self, token: int, logprobs: Any = None) -> None:
        """Take the next token of the answer, and tell who asked what came of it."""
        self.tokens.append(token)
        if self.constraint:
            self.constraint.advance(token)
        if delta := self.answer.push(token, logprobs):
            self.emit(delta)
        if self.answer.ended:
            self.finish("stop")
        elif len(self.tokens) >= self.limit or (self.constraint and self.constraint.complete):
            self.finish("stop" if self.constraint and self.constraint.complete else "length")

    def finish(self, reason: Any) -> None:
        """End the answer; what was held back is sent first."""
        if delta := self.answer.rest():
            self.emit(delta)
        self.ended = True
        self.emit(Finish(reason, self.prompt.tokens, len(self.tokens)))

    def fail(self, error: BaseException) -> None:
        """End without an answer."""
        self.ended = True
        self.emit(error)
