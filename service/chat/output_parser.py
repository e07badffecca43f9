"""What the engine's text says: a thought, an answer, calls of tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from service.chat import reasoning
from service.chat.tags import BOXES, Eraser
from service.chat.tool_calls import CallReader, ToolCall

__all__ = ["Piece", "Reader"]


class Piece(NamedTuple):
    """A part of a reply, or all of it; there is one for every token of every stream."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()


class Reader:
    """Reads one reply: either `whole`, or `feed` and then `end`."""

    def __init__(self, *, thinking: bool, boxes: bool, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._thinking = thinking
        self._eraser = None if boxes else Eraser(BOXES)
        self._splitter = reasoning.Splitter(thinking=thinking)
        self._calls = CallReader(tools) if tools else None

    def feed(self, text: str) -> Piece:
        """Take a piece of the text; returns what is certain."""
        if self._eraser:
            text = self._eraser.feed(text)
        return self._piece(*self._splitter.feed(text))

    def end(self) -> Piece:
        """Return what was held back: the text ends here."""
        last = self._piece(*self._splitter.feed(self._eraser.end())) if self._eraser else Piece()
        rest = self._piece(*self._splitter.end())
        held = self._calls.end() if self._calls else ""
        return Piece(last.reasoning + rest.reasoning, last.content + rest.content + held, (*last.calls, *rest.calls))

    def whole(self, text: str) -> Piece:
        """Read a text that is known to its end."""
        if self._eraser:
            text = self._eraser.feed(text) + self._eraser.end()
        piece = self._piece(*reasoning.split(text, thinking=self._thinking))
        return Piece(piece.reasoning, piece.content + (self._calls.end() if self._calls else ""), piece.calls)

    def _piece(self, thought: str, answer: str) -> Piece:
        if not self._calls:
            return Piece(thought, answer)
        said, calls = self._calls.feed(answer)
        return Piece(thought, said, tuple(calls))
