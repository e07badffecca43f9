"""What an answer says, sent whole or in pieces, without what differs each time: its ids and its time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Said", "length", "read"]

_EVENT = b"data: "
_DONE = b"[DONE]"


@dataclass
class Said:
    """One choice of an answer. A call is its function's name and arguments; the id is drawn anew each time."""

    content: str = ""
    reasoning: str = ""
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    reason: str | None = None

    def add(self, message: dict[str, Any], reason: str | None) -> None:
        """Take a message, or a piece of one."""
        self.content += message.get("content") or ""
        self.reasoning += message.get("reasoning_content") or ""
        for place, call in enumerate(message.get("tool_calls") or ()):
            number = call.get("index", place)
            name, arguments = self.calls.get(number, ("", ""))
            more = call["function"]
            self.calls[number] = (name + (more.get("name") or ""), arguments + (more.get("arguments") or ""))
        self.reason = reason or self.reason


def read(body: bytes | bytearray) -> dict[int, Said]:
    """Read the body of a chat completion, by the index of each choice.

    Raises ValueError, KeyError or TypeError where it is none, or a stream that did not end well.
    """
    said: dict[int, Said] = {}
    for document in _events(body) if body.startswith(_EVENT) else [json.loads(body)]:
        for choice in document["choices"]:
            message = choice["delta"] if "delta" in choice else choice["message"]
            said.setdefault(choice["index"], Said()).add(message, choice.get("finish_reason"))
    return said


def length(said: dict[int, Said]) -> int:
    """How many characters it has, thoughts and calls included."""
    return sum(
        len(one.content) + len(one.reasoning) + sum(len(name) + len(more) for name, more in one.calls.values())
        for one in said.values()
    )


def _events(body: bytes | bytearray) -> Iterator[dict[str, Any]]:
    for event in body.split(b"\n\n"):
        if event.startswith(_EVENT):
            data = event[len(_EVENT) :]
            if data == _DONE:
                return
            yield json.loads(data)
    raise ValueError("a stream without its end")
