"""The order of versions, for every list of them."""

from __future__ import annotations

import re

__all__ = ["order"]

_NUMBERED = re.compile(r"[vV]?(\d+(?:\.\d+)+.*)")
_PART = re.compile(r"\d+|[A-Za-z]+")
_TEXT, _END, _NUMBER = range(3)

Key = tuple[bool, tuple[tuple[int, int, str], ...]]


def order(version: str) -> Key:
    """Return the sort key of a version: numbers compare as numbers, 1.9.0 < 1.10.0.

    1.2.0-rc1 < 1.2.0 < 1.2.0-20250405 < 1.2.0-20250412: letters after a version precede it, a number follows it. What
    does not begin with two numbers and a dot between them has no order of its own and precedes the others: its keys are
    equal, so that a stable sort keeps the order in which they were.
    """
    match = _NUMBERED.fullmatch(version)
    if match is None:
        return (False, ())
    parts = [
        (_NUMBER, int(part), "") if part.isdigit() else (_TEXT, 0, part.lower()) for part in _PART.findall(match[1])
    ]
    return (True, (*parts, (_END, 0, "")))
