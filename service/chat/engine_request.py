"""What one request of a client asks of the engine, in whatever format of the API it came."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydantic import Field

from service.chat.messages import ImagePart, Message
from service.chat.output_parser import OutputParser
from service.chat.request_model import RequestModel
from service.engine import Delta, Finish, Sampling

__all__ = ["ChoiceItem", "ClientRequest", "EngineRequest", "ResponseFormat", "ResponseHead"]

ChoiceItem = tuple[int, Delta | Finish]
"""An item of the engine, and the index of its choice."""


@dataclass(frozen=True)
class EngineRequest:
    """The conversation, or the text of a prompt, and how it is answered.

    `paths`: where in the client's request each message comes from, such as `messages[0]`. `param`: the name of the
    field that holds them all.
    """

    messages: Sequence[Message] | str
    sampling: Sampling
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool | None = None
    parallel_calls: bool = True
    choices: int = 1
    param: str = "messages"
    paths: Sequence[str] = ()

    @property
    def images(self) -> list[ImagePart]:
        """The images of all messages, in order."""
        if isinstance(self.messages, str):
            return []
        return [part for message in self.messages for part in message.content or () if isinstance(part, ImagePart)]

    def is_small(self, count: int) -> bool:
        """Whether it has at most so many messages and parts of one, and nothing else whose conversion takes long."""
        return isinstance(self.messages, str) or (
            len(self.messages) <= count
            and not self.tools
            and not any(message.tool_calls or len(message.content or ()) > count for message in self.messages)
        )

    def path(self, index: int) -> str:
        """Return where in the client's request a message comes from."""
        return self.paths[index] if self.paths else f"{self.param}[{index}]"

    def called(self, param: str, paths: Sequence[str] = ()) -> EngineRequest:
        """Return the request as one whose messages come from another field, and from these places."""
        return replace(self, param=param, paths=paths)

    def without_messages(self) -> EngineRequest:
        """Return the request without its messages and tools, which take memory and which the engine has by now."""
        return replace(self, messages=(), tools=[], paths=())

    def sampling_of(self, index: int) -> Sampling:
        """Return the sampling of one of the choices; with a seed, every choice has a different one derived from it."""
        seed = self.sampling.seed
        if seed is None:
            return self.sampling
        return replace(self.sampling, seed=(seed + index + 2**63) % 2**64 - 2**63)


@dataclass(frozen=True)
class ResponseHead:
    """What identifies a response: a number of its own, the time in seconds, and the model and version that answer."""

    number: str
    created: int
    model: str
    version: str


class ResponseFormat(Protocol):
    """Makes the response, in the format of the request, of the engine's items."""

    async def collect(
        self, items: AsyncGenerator[ChoiceItem, None], parsers: Sequence[OutputParser], head: ResponseHead
    ) -> Mapping[str, Any]:
        """Return the whole response."""
        ...

    def encode(
        self,
        first: ChoiceItem,
        items: AsyncGenerator[ChoiceItem, None],
        parsers: Sequence[OutputParser],
        head: ResponseHead,
        request_id: str,
    ) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events, for `first` before the others; an error is the last event."""
        ...

    def encode_error(self, error: Exception, request_id: str) -> bytes:
        """Return the only event of a stream in which an error came before any other; logs one that is no ApiError."""
        ...


class ClientRequest(RequestModel):
    """Base of the requests in the API's formats. `stream`: the response is a stream of events."""

    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)

    @property
    def is_greedy(self) -> bool:
        """Whether the answer does not depend on chance."""
        return self.temperature == 0

    def engine_request(self) -> EngineRequest:
        """Return what the engine is asked."""
        raise NotImplementedError

    def answer_format(self) -> ResponseFormat:
        """Return the format of the response."""
        raise NotImplementedError
