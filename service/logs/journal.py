"""Lines for journald in its native protocol: a datagram of fields each, with the priority of the line.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL describes it. python-systemd would need a C library and a compiler for this.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["SOCKET", "JournalHandler", "encode", "is_journal", "priority_of"]

SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "glm"

_MAX_FIELD = 1 << 16  # bytes; a datagram of some 200 kB would need a file
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_LENGTH = struct.Struct("<Q")


def is_journal(descriptor: int) -> bool:
    """Return whether a file is the stream to the journal that the service manager has opened; see $JOURNAL_STREAM."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def priority_of(level: int) -> int:
    """Return the priority of syslog(3) for a level of `logging`."""
    return next((priority for least, priority in _PRIORITIES if level >= least), 7)


def encode(fields: Mapping[str, object]) -> bytes:
    """Return the datagram of an entry. A value with a line break is preceded by its length, others end with one."""
    parts = []
    for name, value in fields.items():
        data = str(value).encode(errors="backslashreplace")[:_MAX_FIELD]
        if b"\n" in data:
            parts.append(b"%b\n%b%b\n" % (name.encode(), _LENGTH.pack(len(data)), data))
        else:
            parts.append(b"%b=%b\n" % (name.encode(), data))
    return b"".join(parts)


class JournalHandler(logging.Handler):
    """Sends each record to journald, with the `fields` of the process.

    It never waits: what journald cannot take at once goes to stderr if it is a warning or an error, and is lost
    otherwise. Raises OSError if there is no journald.
    """

    def __init__(self, fields: Mapping[str, object], path: Path = SOCKET) -> None:
        super().__init__()
        self.fields = fields
        self.lost = 0
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.sendto(b"", self._path)  # ignored by journald
        except OSError:
            self._socket.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record."""
        try:
            self.send(record.levelno, self.format(record), {"LOGGER": record.name})
        except Exception:
            self.handleError(record)

    def send(self, level: int, text: str, fields: Mapping[str, object]) -> None:
        """Send a line with further fields."""
        priority = priority_of(level)
        entry = {"MESSAGE": text, "PRIORITY": priority, "SYSLOG_IDENTIFIER": IDENTIFIER, **self.fields, **fields}
        try:
            self._socket.sendto(encode(entry), self._path)  # by path: journald may have been restarted
        except OSError:
            self.lost += 1
            if level >= logging.WARNING:
                print(f"<{priority}>{text}", file=sys.stderr)  # noqa: T201

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()
