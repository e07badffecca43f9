"""Where the lines of a process go: to the journal, or to stderr as text; and the fields that all of them have."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.logs.journal import JournalHandler, is_journal

__all__ = ["Line", "describe_process", "new_handler", "new_writer"]

_FORMAT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
_DATES = "[%Y-%m-%d %H:%M:%S %z]"

_fields: dict[str, object] = {}


class Line(NamedTuple):
    """One line; `fields` returns what the journal gets beside the text."""

    level: int
    text: str
    fields: Callable[[], dict[str, object]] = dict


def describe_process(*, slot: str, generation: int) -> None:
    """Add the slot and the generation to all further entries of this process and its children in the journal."""
    _fields.update(SLOT=slot, GENERATION=generation)


def new_handler() -> logging.Handler:
    """Return the handler for stderr: the journal, which adds the time itself, or lines of text with it."""
    if journal := _journal():
        return journal
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, _DATES))
    return handler


def new_writer() -> Callable[[Sequence[Line]], None]:
    """Return a function that writes many lines at once, where those of `new_handler` go. It may raise OSError."""
    journal = _journal()
    if journal is None:
        return _write_text

    def write(lines: Sequence[Line]) -> None:
        for line in lines:
            journal.send(line.level, line.text, line.fields())

    return write


def _write_text(lines: Sequence[Line]) -> None:
    """Write lines of one time; a record of `logging` each would take four times as long."""
    begin = f"{time.strftime(_DATES)} [{os.getpid()}]"
    sys.stderr.write("".join(f"{begin} [{logging.getLevelName(line.level)}] {line.text}\n" for line in lines))
    sys.stderr.flush()


def _journal() -> JournalHandler | None:
    """Return the journal's handler; None if stderr is another stream, or journald cannot be reached."""
    try:
        return JournalHandler(_fields) if is_journal(sys.stderr.fileno()) else None
    except OSError:
        return None
