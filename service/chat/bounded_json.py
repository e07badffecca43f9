"""Parsing of JSON whose structure is counted before any of it is parsed.

A parsed value takes up to a hundred times the bytes of its text (`[],[],…`), and what reads it as long as it has
elements; text alone costs next to nothing. So each bracket, comma and colon counts, also those inside strings: to tell
them apart would cost more than to parse. Escapes and bytes beyond ASCII count apart, because they make strings slow.
"""

from __future__ import annotations

import json
from typing import Any

import pydantic_core
from pydantic_core import PydanticCustomError

from service.engine import prompt_size

__all__ = ["JsonBudget", "TooComplex", "require_json"]

STRUCTURE, SLOW = b"[{,:", b"\\" + bytes(range(128, 256))
PLAIN = bytes(set(range(256)) - set(STRUCTURE + SLOW))
PIECE = 1 << 18  # bytes counted without a break, in which no other thread runs
MAX_SLOW = 4 << 20  # bytes: 60 ms
MAX_DEFINITION = 1 << 20  # characters of a schema or of a tool's parameters; a prompt of 131,072 tokens can have them


class TooComplex(ValueError):
    """The text has more structure than is allowed."""


class JsonBudget:
    """The structure that all JSON texts of one request may have together: `limit` brackets, commas and colons.

    Depth is limited to 200 by the parser.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._structure = limit
        self._slow = MAX_SLOW

    def parse(self, text: bytes | bytearray | str, *, cache_strings: bool = False) -> Any:
        """Return the value of a JSON text; raises TooComplex, and ValueError if it is not JSON."""
        data = text.encode() if isinstance(text, str) else bytes(text)  # the parser would copy a bytearray by itself
        with memoryview(data) as view:
            for at in range(0, len(view), PIECE):
                self._count(bytes(view[at : at + PIECE]))
        return pydantic_core.from_json(data, allow_inf_nan=False, cache_strings="keys" if cache_strings else "none")

    def _count(self, piece: bytes) -> None:
        counted = piece.translate(None, PLAIN)
        if not counted:
            return
        slow = len(counted.translate(None, STRUCTURE))
        self._slow -= slow
        self._structure -= len(counted) - slow
        if self._structure < 0:
            raise TooComplex(f"it has more than {self._limit} brackets, commas and colons; send less in one request")
        if self._slow < 0:
            raise TooComplex(f"it has more than {MAX_SLOW} escapes and bytes beyond ASCII; send less in one request")


def require_json(value: Any) -> None:
    """Raise a PydanticCustomError if a value that was parsed from JSON is too long or has infinity, as 1e999 is."""
    if prompt_size.characters(value, MAX_DEFINITION) > MAX_DEFINITION:
        raise PydanticCustomError("too_large", "is longer than any that is accepted")
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise PydanticCustomError("not_json", "contains a number that JSON cannot represent") from error
