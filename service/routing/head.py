"""The head of a request, read before it is parsed: to know whose it is, no more."""

from __future__ import annotations

__all__ = ["header", "is_whole"]

LONGEST = 1 << 16  # bytes; what is longer is left to the parser


def is_whole(data: bytes | bytearray) -> bool:
    """Whether a request's first bytes hold all of its head, or more than a head may be."""
    return b"\r\n\r\n" in data or len(data) > LONGEST


def header(data: bytes | bytearray, name: str) -> str | None:
    """The value of the first header of that name (lower case); None without one."""
    lines = bytes(data).partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    for line in lines:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name.encode():
            return value.strip().decode("latin-1")
    return None
