"""Tags in a text that arrives in pieces: a tag may begin in one piece and end in a later one."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["BOX_TAGS", "TagStripper", "partial_tag"]

BOX_TAGS = ("<|begin_of_box|>", "<|end_of_box|>")


def partial_tag(text: str, tags: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may begin one of `tags`; every tag begins with `<`."""
    longest = max(map(len, tags)) - 1
    at = text.find("<", max(0, len(text) - longest))
    while at >= 0:
        if any(tag.startswith(text[at:]) for tag in tags):
            return len(text) - at
        at = text.find("<", at + 1)
    return 0


class TagStripper:
    """Removes tags from a text, holding back only characters that may begin a tag."""

    def __init__(self, tags: Sequence[str]) -> None:
        self._tags = tags
        self._held = ""

    def feed(self, text: str) -> str:
        """Add a piece and return the text that is complete."""
        text, self._held = self._held + text, ""
        if "<" not in text:
            return text
        for tag in self._tags:
            text = text.replace(tag, "")
        end = len(text) - partial_tag(text, self._tags)
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """Return the text held back, at the end of the input."""
        text, self._held = self._held, ""
        return text
