"""Lines for journald in its native protocol, with the priority of the line; see `contract/journald.py`."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from service.contract.journald import SOCKET, encode

__all__ = ["JournalHandler", "is_journal", "priority_of"]

IDENTIFIER = "glm"

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


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
        """Send the record; its attribute `request_id`, if it has one, is the field REQUEST_ID."""
        fields = {"LOGGER": record.name}
        if request_id := getattr(record, "request_id", None):
            fields["REQUEST_ID"] = request_id
        try:
            self.send(record.levelno, self.format(record), fields)
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
