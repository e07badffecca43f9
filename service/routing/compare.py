"""Comparison of two answers to one request; ids and times are ignored."""

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
    """One choice of an answer, as far as it is compared. Of a tool call these are the function's name and arguments."""

    content: str = ""
    reasoning: str = ""
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    finish_reason: str | None = None

    def add(self, message: dict[str, Any], finish_reason: str | None) -> None:
        """Append a whole message, or a delta of a stream."""
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
    """The candidate's answer compared with the live slot's."""

    status: int
    """The status of the candidate's answer; BROKEN_OFF if its body is not a chat completion."""
    kind: int
    """MIRRORED if the two cannot be compared, else EQUAL or DIFFERENT."""
    ratio: float = 0.0
    """The length of the candidate's answer divided by that of the live slot's; 0 if unknown."""


def compare(live: tuple[int, bytes], candidate: tuple[int, bytes], *, greedy: bool) -> Comparison:
    """Compare two answers, each a status and a body. Texts are compared only if the request was `greedy`.

    A request that the live slot answered and the candidate refused is DIFFERENT, greedy or not.
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
    """Return whether a status counts as a failure of the server: 5xx, or 429 (queue full)."""
    return status >= _SERVER_ERROR or status == _QUEUE_FULL


def read_choices(body: bytes | bytearray) -> dict[int, ChoiceText]:
    """Parse the body of a chat completion, streamed or whole; returns its choices by index.

    Raises ValueError, KeyError, TypeError or AttributeError for any other body, and for a stream without its end.
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
        len(choice.content)
        + len(choice.reasoning)
        + sum(len(name) + len(arguments) for name, arguments in choice.calls.values())
        for choice in choices.values()
    )


def _events(body: bytes | bytearray) -> Iterator[dict[str, Any]]:
    for event in body.split(b"\n\n"):
        if event.startswith(_EVENT):
            data = event[len(_EVENT) :]
            if data == _DONE:
                return
            yield json.loads(data)
    raise ValueError("the stream has no [DONE]")
