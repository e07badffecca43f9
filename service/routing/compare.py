"""Whether two answers to one request say the same, ids and times left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from service.contract.samples import BROKEN_OFF, DIFFERENT, EQUAL, MIRRORED

__all__ = ["Comparison", "compare", "is_failure"]

_EVENT = b"data: "
_DONE = b"[DONE]"
_OK, _BAD_REQUEST, _QUEUE_FULL, _SERVER_ERROR = 200, 400, 429, 500
_NOT_A_COMPLETION = (ValueError, KeyError, TypeError, AttributeError)


@dataclass
class ChoiceText:
    """The text of one choice of an answer. A tool call is its function's name and arguments, without its random id."""

    content: str = ""
    reasoning: str = ""
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    finish_reason: str | None = None

    def add(self, message: dict[str, Any], finish_reason: str | None) -> None:
        """Append a message, or a delta of one."""
        self.content += message.get("content") or ""
        self.reasoning += message.get("reasoning_content") or ""
        for place, call in enumerate(message.get("tool_calls") or ()):
            index = call.get("index", place)
            name, arguments = self.calls.get(index, ("", ""))
            function = call["function"]
            self.calls[index] = (name + (function.get("name") or ""), arguments + (function.get("arguments") or ""))
        self.finish_reason = finish_reason or self.finish_reason


@dataclass(frozen=True)
class Comparison:
    """The candidate's answer beside the live slot's."""

    status: int
    """The candidate's; BROKEN_OFF where its body is no completion."""
    kind: int
    """MIRRORED where the two cannot be compared, else EQUAL or DIFFERENT."""
    ratio: float = 0.0
    """The length of the candidate's answer divided by the live slot's; 0 where unknown."""


def compare(live: tuple[int, bytes], candidate: tuple[int, bytes], *, greedy: bool) -> Comparison:
    """Compare two answers, each a status and a body; texts are compared where no token was sampled (`greedy`).

    A request that the live slot answered and the candidate refused counts as different, greedy or not.
    """
    live_status, live_body = live
    status, body = candidate
    if status != _OK or live_status != _OK:
        refused = live_status == _OK and _BAD_REQUEST <= status < _SERVER_ERROR and status != _QUEUE_FULL
        return Comparison(status, DIFFERENT if refused else MIRRORED)
    try:
        expected = read_choices(live_body)
    except _NOT_A_COMPLETION:
        return Comparison(status, MIRRORED)
    try:
        found = read_choices(body)
    except _NOT_A_COMPLETION:
        return Comparison(BROKEN_OFF, MIRRORED)
    ratio = text_length(found) / max(1, text_length(expected))
    if not greedy:
        return Comparison(status, MIRRORED, ratio)
    return Comparison(status, EQUAL if expected == found else DIFFERENT, ratio)


def is_failure(status: int) -> bool:
    """Return whether a status means that the server failed the client."""
    return status >= _SERVER_ERROR or status == _QUEUE_FULL


def read_choices(body: bytes | bytearray) -> dict[int, ChoiceText]:
    """Read the body of a chat completion, streamed or whole, by the index of each choice.

    Raises ValueError, KeyError or TypeError for any other body, and for a stream that was cut short.
    """
    choices: dict[int, ChoiceText] = {}
    for document in _events(body) if body.startswith(_EVENT) else [json.loads(body)]:
        for choice in document["choices"]:
            message = choice["delta"] if "delta" in choice else choice["message"]
            choices.setdefault(choice["index"], ChoiceText()).add(message, choice.get("finish_reason"))
    return choices


def text_length(choices: dict[int, ChoiceText]) -> int:
    """Return the number of characters of all choices, reasoning and tool calls included."""
    return sum(
        len(one.content)
        + len(one.reasoning)
        + sum(len(name) + len(arguments) for name, arguments in one.calls.values())
        for one in choices.values()
    )


def _events(body: bytes | bytearray) -> Iterator[dict[str, Any]]:
    for event in body.split(b"\n\n"):
        if event.startswith(_EVENT):
            data = event[len(_EVENT) :]
            if data == _DONE:
                return
            yield json.loads(data)
    raise ValueError("the stream has no [DONE]")
