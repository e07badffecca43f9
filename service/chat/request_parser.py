"""Parsing of request bodies. Large ones are tried in a process of their own first.

To parse a body and to validate it holds the interpreter, which the engine and all other requests need, for up to 0.3 s.
What is refused for its structure, for its fields or for the length of its text is refused there, and costs this process
nothing but the transfer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from service.chat.engine_request import ClientRequest, EngineRequest
from service.chat.errors import ApiError, invalid
from service.chat.prompt_messages import convert
from service.chat.request import ChatRequest, parse_body, parse_document
from service.engine import PromptTooLong, Refused, prompt_size
from service.engine.grammar_probe import check_size
from service.fairness.client import BATCHES, Client
from service.fairness.pool import FairPool
from service.isolation.processes import Died, IsolatedProcesses, Refusal
from service.settings import Settings

__all__ = ["RequestParser", "begin"]

R = TypeVar("R", bound=ClientRequest)

INLINE = 1 << 14  # bytes; a body of this size, of 100 messages, took 0.4 ms
PROCESSES = 2  # one of them for other addresses than the first
MEMORY = 1 << 30  # bytes; 32 MiB of body with 150,000 brackets, commas and colons took 43 MiB
SECONDS = 3  # of processor time; the same body took 0.25 s


class RequestParser:
    """Parses and validates requests; every method raises ApiError."""

    def __init__(self, settings: Settings) -> None:
        self._max_structure = settings.max_structure
        setup = json.dumps([settings.max_structure, settings.max_prompt_tokens, settings.max_schema]).encode()
        self._processes = IsolatedProcesses(__name__, lambda: setup, count=PROCESSES, memory=MEMORY, seconds=SECONDS)
        self._pool = FairPool(PROCESSES, "parse")

    async def parse(self, body: bytes | bytearray, client: Client, kind: type[R]) -> R:
        """Return the request of this kind that a body holds."""
        if len(body) <= INLINE:
            return parse_body(body, kind, self._max_structure)
        return await self._pool.run(client, self._parse_large, body, kind)

    async def parse_document(self, document: dict[str, Any]) -> ChatRequest:
        """Return the request of a batch's line, which was parsed from JSON."""
        return await self._pool.run(BATCHES, parse_document, document, self._max_structure)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
        self._processes.close()

    def _parse_large(self, body: bytes | bytearray, kind: type[R]) -> R:
        try:
            self._processes.call(f"{kind.__module__}:{kind.__qualname__}\n".encode(), body)
        except Refusal as refusal:
            message, param, code = json.loads(str(refusal))
            raise invalid(message, param=param, code=code) from None
        except Died as error:
            raise invalid(f"the request body cannot be parsed: {error}", code="too_complex") from error
        return parse_body(body, kind, self._max_structure)


class _AnyImage(NamedTuple):
    """Stands for an image, of which this process knows nothing."""

    size: tuple[int, int] = (0, 0)


def begin(setup: bytes) -> Callable[[bytes], bytes]:
    """Return the function that an isolated process calls with a body."""
    max_structure, max_tokens, max_schema = json.loads(setup)

    def answer(request: bytes) -> bytes:
        kind, _, body = request.partition(b"\n")
        try:
            asked = parse_body(body, _kind(kind.decode()), max_structure).engine_request()
            tokens = prompt_size.estimate(_messages(asked), asked.tools, lambda _: 0, max_tokens)
            if tokens > max_tokens:
                too_long = PromptTooLong.estimated(tokens, max_tokens)
                raise invalid(str(too_long), param=asked.param, code="context_length_exceeded")
            if asked.sampling.grammar:
                check_size(asked.sampling.grammar, max_schema)
        except ApiError as error:
            raise ValueError(json.dumps([str(error), error.param, error.code])) from None
        except Refused as error:
            raise ValueError(json.dumps([str(error), error.param, None])) from None
        return b""

    return answer


def _messages(asked: EngineRequest) -> list[dict[str, Any]] | str:
    if isinstance(asked.messages, str):
        return asked.messages
    return [convert(message, "", lambda *_: _AnyImage()) for message in asked.messages]


@cache
def _kind(name: str) -> type[Any]:
    """Return a class by its module and name."""
    module, _, name = name.partition(":")
    kind: type[Any] = getattr(import_module(module), name)
    return kind
