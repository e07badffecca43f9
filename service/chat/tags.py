"""Marks in a text that comes in pieces: a mark may begin in one piece and end in another."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["BOXES", "Eraser", "withheld"]

BOXES = ("<|begin_of_box|>", "<|end_of_box|>")


def withheld(text: str, marks: Sequence[str]) -> int:
    """Count the characters at the end of `text` that may begin one of the marks, all of which begin with `<`."""
    longest = max(map(len, marks)) - 1
    at = text.find("<", max(0, len(text) - longest))
    while at >= 0:
        if any(mark.startswith(text[at:]) for mark in marks):
            return len(text) - at
        at = text.find("<", at + 1)
    return 0


class Eraser:
    """Takes marks out of a text, and holds back no more than what may become one."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = marks
        self._held = ""

    def feed(self, text: str) -> str:
        """Take a piece; returns what is certain."""
        text, self._held = self._held + text, ""
        if "<" not in text:
            return text
        for mark in self._marks:
            text = text.replace(mark, "")
        certain = len(text) - withheld(text, self._marks)
        self._held = text[certain:]
        return text[:certain]

    def end(self) -> str:
        """Return what was held back: the text ends here, and it became no mark."""
        text, self._held = self._held, ""
        return text
