"""The handler of all lines of a process, and the fields that all of them have."""

from __future__ import annotations

import logging
import sys

from service.logs.journal import JournalHandler, is_journal

__all__ = ["describe_process", "new_handler"]

_FORMAT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
_DATES = "[%Y-%m-%d %H:%M:%S %z]"

_fields: dict[str, object] = {}


def describe_process(*, slot: str, generation: int) -> None:
    """Add the slot and the generation to all further entries of this process and its children in the journal."""
    _fields.update(SLOT=slot, GENERATION=generation)


def new_handler() -> logging.Handler:
    """Return the handler for stderr: the journal, which adds the time itself, or lines of text with it."""
    if is_journal(sys.stderr.fileno()):
        try:
            return JournalHandler(_fields)
        except OSError:  # not reachable from here; then the lines go where all of the unit's output goes
            pass
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, _DATES))
    return handler
