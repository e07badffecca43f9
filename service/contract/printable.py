"""Text of clients in printable ASCII: it can neither begin a line of a log nor reach the terminal of a reader."""

from __future__ import annotations

__all__ = ["printable", "word"]


def printable(text: str, limit: int) -> str:
    """Return text in printable ASCII, of at most `limit` characters."""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text[:limit]
    return text[:limit].encode("unicode_escape").decode("ascii")[:limit]


def word(text: str, limit: int) -> str:
    """Return printable text without spaces, which separate the fields of a line."""
    return printable(text, limit).replace(" ", r"\x20")
