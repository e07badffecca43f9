"""Parser of the model's output: reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from service.chat.reasoning import ReasoningSplitter, split_reasoning
from service.chat.tags import BOX_TAGS, TagStripper
from service.chat.tool_calls import ToolCall, ToolCallParser

__all__ = ["OutputParser", "ParsedText"]


class ParsedText(NamedTuple):
    """Parsed output, or a piece of it. A tuple, because one is created for every token of every stream."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()


class OutputParser:
    """Parses the output of one choice: either `parse` once, or `feed` for each piece and then `flush`."""

    def __init__(self, *, thinking: bool, boxes: bool, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._thinking = thinking
        self._stripper = None if boxes else TagStripper(BOX_TAGS)
        self._splitter = ReasoningSplitter(thinking=thinking)
        self._calls = ToolCallParser(tools) if tools else None

    def feed(self, text: str) -> ParsedText:
        """Add a piece and return what is certain."""
        if self._stripper:
            text = self._stripper.feed(text)
        return self._parse_calls(*self._splitter.feed(text))

    def flush(self) -> ParsedText:
        """Return the text held back, at the end of the output."""
        last = self._parse_calls(*self._splitter.feed(self._stripper.flush())) if self._stripper else ParsedText()
        rest = self._parse_calls(*self._splitter.flush())
        held = self._calls.flush() if self._calls else ""
        return ParsedText(
            last.reasoning + rest.reasoning, last.content + rest.content + held, (*last.calls, *rest.calls)
        )

    def parse(self, text: str) -> ParsedText:
        """Parse a complete output."""
        if self._stripper:
            text = self._stripper.feed(text) + self._stripper.flush()
        parsed = self._parse_calls(*split_reasoning(text, thinking=self._thinking))
        return ParsedText(parsed.reasoning, parsed.content + (self._calls.flush() if self._calls else ""), parsed.calls)

    def _parse_calls(self, reasoning: str, content: str) -> ParsedText:
        if not self._calls:
            return ParsedText(reasoning, content)
        content, calls = self._calls.feed(content)
        return ParsedText(reasoning, content, tuple(calls))
