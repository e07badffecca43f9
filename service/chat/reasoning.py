"""The thought before an answer, told apart from it: `<think>thought</think>answer`.

The rules, where a checkpoint does not do as its template says:

- thinking switched off by the request: all of it is the answer;
- a text that begins with `<think>`, after white space or at once, is a thought until `</think>`, or to its end when it
  was cut short;
- any other text is the answer. In a stream it must be one from its first character on; a text known whole is split at
  a `</think>` that nothing opened, for some checkpoints leave the opening mark out.

White space around the thought belongs to the marks.
"""

from __future__ import annotations

from service.chat.tags import withheld

__all__ = ["Splitter", "split"]

OPEN, CLOSE = "<think>", "</think>"


class Splitter:
    """Splits a text that comes in pieces, and holds back only white space and what may become a mark."""

    def __init__(self, *, thinking: bool) -> None:
        self._held = ""
        self._state = self._before if thinking else self._answer

    def feed(self, text: str) -> tuple[str, str]:
        """Take a piece; returns what is certain of the thought and of the answer."""
        return self._state(self._held + text)

    def end(self) -> tuple[str, str]:
        """Return what was held back: the text ends here."""
        text, self._held = self._held, ""
        if self._state == self._before:
            return "", text
        return (text.rstrip(), "") if self._state in (self._opened, self._thought) else ("", "")

    def _hold(self, text: str) -> tuple[str, str]:
        self._held = text
        return "", ""

    def _before(self, text: str) -> tuple[str, str]:
        begin = text.lstrip()
        if begin.startswith(OPEN):
            self._state = self._opened
            return self._opened(begin[len(OPEN) :])
        if OPEN.startswith(begin):  # nothing yet, too
            return self._hold(text)
        self._state = self._answer
        return self._answer(text)

    def _opened(self, text: str) -> tuple[str, str]:
        text = text.lstrip()
        if not text:
            return self._hold("")
        self._state = self._thought
        return self._thought(text)

    def _thought(self, text: str) -> tuple[str, str]:
        thought, close, rest = text.partition(CLOSE)
        if close:
            self._state = self._closed
            return thought.rstrip(), self._closed(rest)[1]
        certain = len(text[: len(text) - withheld(text, (CLOSE,))].rstrip())
        self._held = text[certain:]
        return text[:certain], ""

    def _closed(self, text: str) -> tuple[str, str]:
        text = text.lstrip()
        if not text:
            return self._hold("")
        self._state = self._answer
        return self._answer(text)

    def _answer(self, text: str) -> tuple[str, str]:
        self._held = ""
        return "", text


def split(text: str, *, thinking: bool) -> tuple[str, str]:
    """Split a whole text into the thought and the answer."""
    if thinking and CLOSE in text and not text.lstrip().startswith(OPEN):
        text = OPEN + text
    splitter = Splitter(thinking=thinking)
    thought, answer = splitter.feed(text)
    rest = splitter.end()
    return thought + rest[0], answer + rest[1]
