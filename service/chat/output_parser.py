"""Parser of the model's output: reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from service.chat.reasoning import ReasoningSplitter, split_reasoning
from service.chat.tags import BOX_TAGS, TagStripper
from service.chat.tool_calls import CallPiece, ToolCallParser

__all__ = ["OutputParser", "ParsedText"]


class ParsedText(NamedTuple):
    """Parsed output, or a piece of it. A tuple, because one is created for every token of every stream."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[CallPiece, ...] = ()


class OutputParser:
    """Parses the output of one choice: either `parse` once, or `feed` for each piece and then `flush`.

    Calls are taken out first, wherever they stand: a model may call before it ends its reasoning, or not end it.
    """

    def __init__(
        self,
        *,
        thinking: bool,
        boxes: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        parallel_calls: bool = True,
    ) -> None:
        self._thinking = thinking
        self._calls = ToolCallParser(tools, single=not parallel_calls) if tools else None
        self._stripper = None if boxes else TagStripper(BOX_TAGS)
        self._splitter = ReasoningSplitter(thinking=thinking)

    def feed(self, text: str) -> ParsedText:
        """Add a piece and return what is certain."""
        calls: list[CallPiece] = []
        if self._calls:
            text, calls = self._calls.feed(text)
        if self._stripper:
            text = self._stripper.feed(text)
        return ParsedText(*self._splitter.feed(text), tuple(calls))

    def flush(self, *, is_complete: bool = True) -> ParsedText:
        """Return the text held back, at the end of the output; `is_complete`: the model has ended it itself."""
        text, calls = self._calls.flush(is_complete=is_complete) if self._calls else ("", [])
        if self._stripper:
            text = self._stripper.feed(text) + self._stripper.flush()
        last, rest = self._splitter.feed(text), self._splitter.flush()
        return ParsedText(last[0] + rest[0], last[1] + rest[1], tuple(calls))

    def parse(self, text: str, *, is_complete: bool = True) -> ParsedText:
        """Parse a complete output."""
        calls: list[CallPiece] = []
        if self._calls:
            text, calls = self._calls.feed(text)
            rest, more = self._calls.flush(is_complete=is_complete)
            text, calls = text + rest, calls + more
        if self._stripper:
            text = self._stripper.feed(text) + self._stripper.flush()
        return ParsedText(*split_reasoning(text, thinking=self._thinking), tuple(calls))
