"""journald's native protocol: a datagram of fields for each entry.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL describes it. python-systemd would need a C library and a compiler for this.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

__all__ = ["SOCKET", "encode"]

SOCKET = Path("/run/systemd/journal/socket")

_MAX_FIELD = 1 << 16  # bytes; a datagram of some 200 kB would need a file
_LENGTH = struct.Struct("<Q")


def encode(fields: Mapping[str, object]) -> bytes:
    """Return the datagram of an entry. A value with a line break is preceded by its length, others end with one."""
    text = "".join([f"{name}={value}\n" for name, value in fields.items()])
    data = text.encode(errors="backslashreplace")
    if text.count("\n") == len(fields) and len(data) <= _MAX_FIELD:  # as nearly all: a third of the time
        return data
    return b"".join([_field(name, str(value)) for name, value in fields.items()])


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")[:_MAX_FIELD]
    if b"\n" in data:
        return b"%b\n%b%b\n" % (name.encode(), _LENGTH.pack(len(data)), data)
    return b"%b=%b\n" % (name.encode(), data)
