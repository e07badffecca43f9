"""What a rollout does, for the system's journal: who began it, each phase, and how it ended."""

from __future__ import annotations

import logging
import os
import pwd
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from deploy.journal.record import Record
from deploy.systemd.sandbox import LOG_VARIABLE
from service.contract import journald
from service.contract.printable import printable

__all__ = ["announce_end", "announce_phase", "fields_of", "operator"]

IDENTIFIER = "glmctl"

_MAX_TEXT = 2000  # characters
_PRIORITIES = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
_LEVELS = {"failed": logging.ERROR, "not ready": logging.ERROR, "done": logging.INFO}
"""Of outcomes; that of the others, which an operator or the analysis has chosen, is WARNING."""


def announce_phase(record: Record) -> None:
    """Tell that the record's last phase has begun, and with the first one who began the rollout."""
    text = f"{_name(record)}: {record.phase}"
    if len(record.steps) == 1:
        text = f"{text}, begun by {operator()}"
    _write(logging.WARNING if _is_undone(record) else logging.INFO, text, fields_of(record))


def announce_end(record: Record) -> None:
    """Tell how the rollout has ended."""
    outcome = record.outcome or ""
    level = _LEVELS.get(outcome, logging.WARNING)
    if outcome == "done" and record.reason:  # not as planned, as with requests that were cut
        level = logging.WARNING
    seconds = "" if record.seconds is None else f" after {record.seconds:.1f} s"
    lost = f"; lost requests: {record.receipt.lost}" if record.receipt and record.receipt.lost else ""
    reason = f": {record.reason}" if record.reason else ""
    _write(level, f"{_name(record)}: {outcome}{seconds}{lost}{reason}", fields_of(record) | {"OUTCOME": outcome})


def operator() -> str:
    """Return the name of the user who runs this process; behind sudo also of the one who called it."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"user {os.getuid()}"
    caller = os.environ.get("SUDO_USER")
    return printable(f"{name} for {caller}" if caller and caller != name else name, 200)


def _is_undone(record: Record) -> bool:
    return record.phase == "rollback" and record.kind != "rollback"


def _name(record: Record) -> str:
    return f"rollout {record.id}: {record.kind} of {record.version} into {record.slot} ({record.strategy})"


def fields_of(record: Record) -> dict[str, object]:
    """Return what each line of a rollout has beside its text."""
    return {
        "ROLLOUT": record.id,
        "KIND": record.kind,
        "STRATEGY": record.strategy,
        "PHASE": record.phase,
        "MODEL_VERSION": record.version,
        "SLOT": record.slot,
        "OPERATOR": operator(),
    }


def _write(level: int, text: str, fields: Mapping[str, object]) -> None:
    """Write a line. Without a journal it is lost: that ends no rollout, which has its record."""
    text = printable(text, _MAX_TEXT)
    with suppress(OSError):
        if log := os.environ.get(LOG_VARIABLE):
            _append(Path(log), level, text)
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as journal:
            entry = {"MESSAGE": text, "PRIORITY": _PRIORITIES[level], "SYSLOG_IDENTIFIER": IDENTIFIER, **fields}
            journal.sendto(journald.encode(entry), str(journald.SOCKET))


def _append(log: Path, level: int, text: str) -> None:
    """Append a line in the format of the service's own."""
    at = datetime.now().astimezone()
    with log.open("a") as file:
        file.write(f"[{at:%Y-%m-%d %H:%M:%S %z}] [{os.getpid()}] [{logging.getLevelName(level)}] {text}\n")
