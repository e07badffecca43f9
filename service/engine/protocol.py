"""The interface between the API and the engine: a conversation goes in, a stream of Deltas and one Finish comes out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from service.fairness.client import NOBODY, Client
from service.model.release import Progress, Release

__all__ = [
    "Conversation",
    "Delta",
    "Engine",
    "Finish",
    "Grammar",
    "Limits",
    "Priority",
    "PromptTooLong",
    "QueueTimeout",
    "Refused",
    "Sampling",
    "TokenLogprob",
    "Usage",
    "WorkerEngine",
    "json_rule",
]

Priority = Literal["interactive", "batch"]

Conversation = list[dict[str, Any]] | str
"""The messages that the chat template renders, or the text of a prompt as it is; see `Engine.stream`."""


class Grammar(NamedTuple):
    """What an output must be: `text` is in llguidance's dialect of Lark. `param` names the field that asked for it."""

    text: str
    param: str = "response_format"
    kind: str = "JSON schema"  # of what the field has, for messages
    after: str | None = None  # the token after whose first occurrence it applies; None: from the begin, or `</think>`

    @classmethod
    def of_document(cls, schema: Any) -> Grammar:
        """Return the grammar of JSON documents that follow a JSON schema."""
        return cls(f"start: document\n{json_rule('document', schema)}")


def json_rule(name: str, schema: Any) -> str:
    """Return the rule of a grammar that is JSON of a schema, without white space: models can write that without end."""
    options = {"whitespace_flexible": False, "coerce_one_of": True, "lenient": True}
    schema = {**schema, "x-guidance": options} if isinstance(schema, dict) else schema
    return f"{name}: %json {json.dumps(schema, ensure_ascii=False)}"


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of a request; None means the default of the checkpoint's generation_config or the release."""

    max_tokens: int | None = None
    temperature: float | None = None  # 0: greedy
    top_p: float | None = None
    top_k: int | None = None  # 0 and -1: all
    min_p: float | None = None  # relative to the probability of the most likely token
    repetition_penalty: float | None = None  # over prompt and output; 1: none
    presence_penalty: float = 0.0  # over the output, as OpenAI defines it
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()  # end the output, beside the end tokens of the checkpoint
    min_tokens: int = 0  # before, neither end tokens nor stop strings end the output
    ignore_eos: bool = False  # the end tokens of the checkpoint are never sampled
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, and what is added to its logit
    logprobs: int | None = None  # most likely tokens to report beside the sampled one; None: no report at all
    grammar: Grammar | None = None  # of the output after any reasoning


@dataclass(frozen=True)
class TokenLogprob:
    """Log probability of an output token and of the most likely tokens in its place, in order, before penalties."""

    data: bytes  # of the token; may end inside a character
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """Text appended to the output, in whole characters, and the log probabilities of its tokens.

    The text is empty only if `logprobs` is not: for tokens that add no text, such as an end token. `tokens` is the
    number of output tokens since the last delta, `prompt_tokens` that of the prompt, with image tokens.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: int = 1
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Finish:
    """End of an output. `completion_tokens` includes the end token, `prompt_tokens` includes image tokens.

    `waited`: seconds until the request first had a row.
    """

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    waited: float = field(default=0.0, compare=False)


class Refused(ValueError):
    """The request is invalid; `param` names the field at fault."""

    param = "messages"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param or self.param


class PromptTooLong(Refused):
    """The conversation, images included, exceeds the limit; the message gives both numbers, in tokens.

    Client libraries search it for "maximum context length is … tokens", which OpenAI's has.
    """

    def __init__(self, tokens: int, limit: int, more: str = "") -> None:
        super().__init__(
            f"This model's maximum context length is {limit} tokens."
            f" However, the conversation has {tokens} tokens{more}, images included. Please shorten it."
        )

    @classmethod
    def estimated(cls, tokens: int, limit: int) -> PromptTooLong:
        """Return the error for an estimate, which may be too low."""
        return cls(tokens, limit, " or more")


class QueueTimeout(Exception):
    """The request got no cache row within the allowed waiting time."""


@dataclass(frozen=True)
class Usage:
    """Load of the engine: requests, and tokens of the cache reserved for running requests out of `kv_capacity`.

    The other numbers are counts since its start: steps, the sequences of all of them, and the images whose features
    were found in the cache or had to be computed.
    """

    running: int
    waiting: int
    kv_tokens: int
    kv_capacity: int
    steps: int = 0
    step_sequences: int = 0
    image_hits: int = 0
    image_misses: int = 0


@dataclass(frozen=True)
class Limits:
    """Limits of a request, in tokens, seconds and characters.

    `stall`: seconds without a step after which a busy engine is hung. `client_rows`: part of the rows that one address
    may hold even if no other waits.
    """

    max_prompt_tokens: int = 32_768
    max_wait: float = 60.0
    max_seconds: float = 600.0
    stall: float = 120.0
    client_rows: float = 1.0
    max_schema: int = 1 << 16


class Engine(Protocol):
    """What the API requires of an engine."""

    def stream(
        self,
        messages: Conversation,
        sampling: Sampling,
        *,
        thinking: bool | None = None,
        tools: Sequence[dict[str, Any]] = (),
        priority: Priority = "interactive",
        client: Client = NOBODY,
    ) -> AsyncIterator[Delta | Finish]:
        """Generate a reply: Deltas, then one Finish; raises Refused and QueueTimeout.

        The first item follows the first token: until then the request counts as waiting, and an error has no item
        before it.

        Messages that are a string are the prompt itself: the chat template is not used, and control tokens in it are
        what they say, except those of images. Otherwise a message is `{"role", "content"}` plus other fields of the
        chat template (`tool_calls`, `reasoning_content`, …); its content is a string or a list of
        `{"type": "text", "text"}` and `{"type": "image", "image": image}`, where the image is RGB and has a `size`
        (width, height) and NumPy's array interface, as PIL's have. `tools` are OpenAI's definitions, rendered by the
        template. A request of priority `batch` runs only in rows that no interactive request needs. The clients'
        requests are prepared in turn, and the next row is given to the waiting client that holds the fewest. Closing
        the iterator, or cancelling the task that awaits it, frees the row within two steps.
        """
        ...

    @property
    def max_new_tokens(self) -> int:
        """Tokens that an answer has at most if `max_tokens` is not given."""
        ...

    def check_size(self, messages: Conversation, tools: Sequence[dict[str, Any]] = ()) -> int:
        """Return an estimate of the prompt's tokens; raises PromptTooLong if it exceeds the limit.

        Everything that reaches the chat template counts. Of an image only `size` is used, (width, height) in pixels.
        """
        ...

    @property
    def context_length(self) -> int:
        """The most tokens that a prompt and its answer have together; the limit of a prompt may be lower."""
        ...

    def usage(self) -> Usage:
        """Return the current load."""
        ...

    def answering(self) -> bool:
        """Return False if the engine thread has ended, or has work and has not completed a step for too long."""
        ...

    def close(self) -> None:
        """Stop the engine; unfinished streams raise RuntimeError."""
        ...


@dataclass(frozen=True)
class Staged:
    """Weights that were read, where they can replace the model's within one copy, or without one."""

    weights: Mapping[str, Any]
    place: str
    """As an operator reads it: memory, device memory, pinned memory or mapped files."""
    release: Callable[[], None] = lambda: None
    """Frees what they take beside the model. They must not be used afterwards."""


class WorkerEngine(Engine, Protocol):
    """What a worker requires of an engine in addition."""

    def warm_up(self, progress: Progress) -> None:
        """Answer once, blocking until that is done; raises ReleaseError if the model cannot."""
        ...

    def read_weights(self, release: Release, progress: Progress) -> Mapping[str, Any]:
        """Read the weights of a release of the same architecture, in any thread; raises ReleaseError."""
        ...

    def stage_weights(self, weights: Mapping[str, Any], progress: Progress) -> Staged:
        """Bring weights that were read to where replacing the model's takes the least time; in any thread."""
        ...

    async def replace_weights(self, weights: Mapping[str, Any]) -> None:
        """Use the weights that were read, between steps and while no request runs."""
        ...

    @property
    def memory(self) -> int:
        """Bytes that it takes of its GPU: weights, workspace and KV cache; 0 on the CPU, and while it sleeps."""
        ...

    @property
    def can_sleep(self) -> bool:
        """Whether `sleep` can be called."""
        ...

    async def sleep(self) -> None:
        """Free the memory of the device once no request runs; the weights stay in that of the host."""
        ...

    async def wake_up(self) -> None:
        """Take the memory of the device again, and the weights; loads them if that fails. Raises what prevents it."""
        ...

    @property
    def closed(self) -> bool:
        """Whether new requests are rejected."""
        ...
