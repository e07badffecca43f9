"""Words of two texts that the other has not at that place."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from html import escape

__all__ = ["MAX_WORDS", "mark_differences"]

MAX_WORDS = 1500  # of a text; the time grows with their square
# Chinese and Japanese are written without spaces, so that each character is a word; punctuation belongs to no word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|(?:(?![\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])\w)+")


def mark_differences(first: str, second: str) -> tuple[str, str, int] | None:
    """Return both texts as HTML with differing words in `<mark>`, and how many those are; None if one is too long."""
    words = [list(WORD.finditer(text)) for text in (first, second)]
    if max(map(len, words)) > MAX_WORDS:
        return None
    one, other = ([word[0].casefold() for word in side] for side in words)
    matcher = SequenceMatcher(None, one, other)
    differing = [set(range(len(side))) for side in words]
    for block in matcher.get_matching_blocks():
        differing[0] -= set(range(block.a, block.a + block.size))
        differing[1] -= set(range(block.b, block.b + block.size))
    marked = [_marked(text, side, which) for text, side, which in zip((first, second), words, differing, strict=True)]
    return marked[0], marked[1], sum(map(len, differing))


def _marked(text: str, words: list[re.Match[str]], differing: set[int]) -> str:
    """Return the text as HTML; neighbours that differ are in one `<mark>`."""
    parts, at = [], 0
    for number, word in enumerate(words):
        if number in differing:
            begins, ends = number - 1 not in differing, number + 1 not in differing
            parts.append(escape(text[at : word.start()]))
            parts.append(f"{'<mark>' * begins}{escape(word[0])}{'</mark>' * ends}")
            at = word.end()
    return "".join([*parts, escape(text[at:])])
