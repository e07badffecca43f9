"""One request in the engine: its prompt, its parameters, its output and its progress."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from service.engine.detokenizer import OutputProcessor
from service.engine.grammar import Constraint
from service.engine.prompt import Prompt
from service.engine.protocol import Delta, Finish, Priority, TokenLogprob
from service.engine.sampling_params import SamplingParams
from service.fairness.client import NOBODY, Client

__all__ = ["Event", "Sequence"]

Event = Delta | Finish | BaseException

_numbers = itertools.count()


@dataclass(eq=False)
class Sequence:
    """A prompt and the output generated for it; it occupies a row of the cache while it runs.

    The cache holds the first `cached` of its tokens. With one token uncomputed it decodes; with more it is in prefill.
    A preempted sequence is restored by prefill of its prompt and its output so far. The last `unread` of its tokens are
    not in `tokens` yet: they were sampled on the device, at index `place` of the tokens of the step before.
    """

    prompt: Prompt
    params: SamplingParams
    output: OutputProcessor
    max_new_tokens: int
    emit: Callable[[Event], None] = lambda _: None
    priority: Priority = "interactive"
    client: Client = NOBODY
    constraint: Constraint | None = None
    max_seconds: float = float("inf")  # from the first time it has a row
    queue_deadline: float = float("inf")  # monotonic seconds; it fails if it has no row by then
    deadline: float = float("inf")  # monotonic seconds; set when it first has a row
    waited: float = -1.0  # seconds from its arrival until it first had a row; -1: it had none
    cancelled: bool = False  # may be set once, from any thread
    features: Tensor | None = None  # of all its images: (image tokens, hidden), on the device
    tokens: list[int] = field(default_factory=list)  # of the output
    unread: int = 0
    place: int = -1
    cached: int = 0
    row: int = -1
    ended: bool = False
    number: int = field(default_factory=lambda: next(_numbers))  # order of arrival
    arrived_at: float = field(default_factory=time.monotonic)

    @property
    def length(self) -> int:
        """Tokens of prompt and output so far."""
        return self.prompt.length + self.sampled

    @property
    def sampled(self) -> int:
        """Tokens of the output so far, with those that are not read yet."""
        return len(self.tokens) + self.unread

    @property
    def needs_tokens(self) -> bool:
        """Whether the host must know its tokens before the next one is sampled, or reports more than the token."""
        return self.constraint is not None or self.params.has_penalties or self.params.logprobs is not None

    @property
    def max_length(self) -> int:
        """The greatest possible `length`."""
        return self.prompt.length + self.max_new_tokens

    @property
    def uncomputed(self) -> int:
        """Tokens that must be computed before the next one can be sampled."""
        return self.length - self.cached

    def ids(self, start: int, end: int) -> list[int]:
        """Return the token ids from index `start` to `end` of prompt and output."""
        prompt = self.prompt.length
        if start >= prompt:
            return self.tokens[start - prompt : end - prompt]
        head: list[int] = self.prompt.ids[start:end].tolist()
        return head + self.tokens[: max(0, end - prompt)]

    def push(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Append an output token and emit the resulting events."""
        self.tokens.append(token)
        if self.constraint:
            self.constraint.advance(token)
        if delta := self.output.push(token, logprob):
            self.emit(delta)
        if self.output.ended:
            self.finish("stop")
        elif len(self.tokens) >= self.max_new_tokens or (self.constraint and self.constraint.complete):
            self.finish("stop" if self.constraint and self.constraint.complete else "length")

    def finish(self, reason: Literal["stop", "length"]) -> None:
        """End the output: emit held-back text, then Finish."""
        if delta := self.output.flush():
            self.emit(delta)
        self.ended = True
        self.emit(Finish(reason, self.prompt.length, len(self.tokens), max(0.0, self.waited)))

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.ended = True
        self.emit(error)
