"""Separation of reasoning from content: `<think>reasoning</think>content`.

Checkpoints do not always follow their template, so these rules apply:

- with thinking disabled by the request, the whole text is content;
- a text that begins with `<think>`, optionally after white space, is reasoning up to `</think>`, or to its end if it
  was cut off before;
- any other text is content. In a stream this is decided at the first character; a complete text is split at a
  `</think>` without an opening tag, because some checkpoints omit that tag.

White space around the reasoning is removed with the tags.
"""

from __future__ import annotations

from service.chat.tags import partial_tag

__all__ = ["CLOSE_TAG", "OPEN_TAG", "ReasoningSplitter", "split_reasoning"]

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"


class ReasoningSplitter:
    """Splits a text that arrives in pieces, holding back only white space and characters that may begin a tag.

    `feed` and `flush` return a pair: reasoning, content.
    """

    def __init__(self, *, thinking: bool) -> None:
        self._held = ""
        self._state = self._before_open_tag if thinking else self._in_content

    def feed(self, text: str) -> tuple[str, str]:
        """Add a piece and return what is certain."""
        return self._state(self._held + text)

    def flush(self) -> tuple[str, str]:
        """Return the text held back, at the end of the input."""
        text, self._held = self._held, ""
        if self._state == self._before_open_tag:
            return "", text
        return (text.rstrip(), "") if self._state in (self._after_open_tag, self._in_reasoning) else ("", "")

    def _hold(self, text: str) -> tuple[str, str]:
        self._held = text
        return "", ""

    def _before_open_tag(self, text: str) -> tuple[str, str]:
        stripped = text.lstrip()
        if stripped.startswith(OPEN_TAG):
            self._state = self._after_open_tag
            return self._after_open_tag(stripped[len(OPEN_TAG) :])
        if OPEN_TAG.startswith(stripped):  # also true of an empty text
            return self._hold(text)
        self._state = self._in_content
        return self._in_content(text)

    def _after_open_tag(self, text: str) -> tuple[str, str]:
        text = text.lstrip()
        if not text:
            return self._hold("")
        self._state = self._in_reasoning
        return self._in_reasoning(text)

    def _in_reasoning(self, text: str) -> tuple[str, str]:
        reasoning, close_tag, rest = text.partition(CLOSE_TAG)
        if close_tag:
            self._state = self._after_close_tag
            return reasoning.rstrip(), self._after_close_tag(rest)[1]
        end = len(text[: len(text) - partial_tag(text, (CLOSE_TAG,))].rstrip())
        self._held = text[end:]
        return text[:end], ""

    def _after_close_tag(self, text: str) -> tuple[str, str]:
        text = text.lstrip()
        if not text:
            return self._hold("")
        self._state = self._in_content
        return self._in_content(text)

    def _in_content(self, text: str) -> tuple[str, str]:
        self._held = ""
        return "", text


def split_reasoning(text: str, *, thinking: bool) -> tuple[str, str]:
    """Split a complete text into reasoning and content."""
    if thinking and CLOSE_TAG in text and not text.lstrip().startswith(OPEN_TAG):
        text = OPEN_TAG + text
    splitter = ReasoningSplitter(thinking=thinking)
    reasoning, content = splitter.feed(text)
    rest = splitter.flush()
    return reasoning + rest[0], content + rest[1]
