"""The answer as OpenAI writes it: in one piece, or as server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from service.engine import Delta, Finish
from service.errors import unexpected

__all__ = ["Head", "Item", "pieces", "whole"]

log = logging.getLogger("service")

Item = Delta | Finish


@dataclass(frozen=True)
class Head:
    """What all pieces of one answer begin with."""

    id: str
    created: int
    model: str
    fingerprint: str

    def document(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Make one object of the answer."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **more,
        }

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """Make one piece of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self.document("chat.completion.chunk", [choice])


def _usage(finish: Finish) -> dict[str, int]:
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
    }


async def whole(items: AsyncGenerator[Item, None], head: Head) -> dict[str, Any]:
    """Collect an answer into one `chat.completion`."""
    text = ""
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Finish):
                message = {"role": "assistant", "content": text, "refusal": None}
                choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": item.reason}
                return head.document("chat.completion", [choice], usage=_usage(item))
            text += item.text
    raise RuntimeError("the engine ended without saying why")


async def pieces(
    first: Item, items: AsyncGenerator[Item, None], head: Head, usage: bool, request_id: str
) -> AsyncGenerator[bytes, None]:
    """Write the answer as server-sent events; an engine that fails midway is the last of them."""
    empty = {"usage": None} if usage else {}
    async with aclosing(items):
        yield _event(head.chunk({"role": "assistant", "content": ""}) | empty)
        try:
            item = first
            while isinstance(item, Delta):
                yield _event(head.chunk({"content": item.text}) | empty)
                item = await anext(items)
        except Exception:
            log.exception("request %s failed in its stream", request_id)
            yield _event(unexpected(request_id))
            return
        yield _event(head.chunk({}, item.reason) | empty)
        if usage:
            yield _event(head.document("chat.completion.chunk", [], usage=_usage(item)))
        yield b"data: [DONE]\n\n"


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
