"""What an operator may ask `glmctl operate` for: the request, the command that it becomes, and the record of it.

A request is one line of JSON on the socket `operate.sock`: `key`, `verb` and `values`. The answer is another: `error`,
or the `operator` whose key it is and, unless `verb` is empty, the `id` of the operation that has begun. Its record is
`operations/ID.json` in the state directory, and what glmctl prints is in `operations/ID.log`, which is locked as long
as it runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from service.contract import fields, regular_file
from service.contract.slots import SLOTS

__all__ = [
    "MAX_REQUEST",
    "STRATEGIES",
    "VERBS",
    "VERSION",
    "Operation",
    "Request",
    "command",
    "directory",
    "newest",
    "output",
    "socket_path",
]

MAX_REQUEST = 16_384
"""Bytes of a request, with its newline."""

STRATEGIES = ("auto", "overlap", "weights", "swap")
"""What `strategy` of a deploy may be."""

VERSION = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}"
"""The pattern of the name of a release."""

_TAIL = 65_536  # bytes of the output that are shown
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]{6}-[0-9a-f]{8}")
_DURATION = r"[0-9]{1,7}(\.[0-9]{1,3})?(ms|s|m|h)?"
_SHARE = r"[0-9]{1,3}(\.[0-9]{1,3})?"


@dataclass(frozen=True)
class Verb:
    """The words of a command of glmctl: its options, its flags, whose value is `yes`, and its argument."""

    options: Mapping[str, str]
    """The pattern of each value."""
    flags: frozenset[str] = frozenset()
    argument: tuple[str, str] | None = None
    """Name and pattern."""
    is_required: bool = False
    """Whether the argument is."""


VERBS: Mapping[str, Verb] = {
    "deploy": Verb(
        {
            "strategy": "|".join(STRATEGIES),
            "canary": rf"{_SHARE}(,{_SHARE}){{0,9}}",
            "step": rf"pause|{_DURATION}",
            "bake": _DURATION,
        },
        frozenset({"dry-run"}),
        ("version", VERSION),
        is_required=True,
    ),
    "promote": Verb({}),
    "abort": Verb({}),
    "rollback": Verb({}, argument=("version", VERSION)),
    "retire": Verb({}, argument=("slot", "|".join(SLOTS))),
    "release add": Verb({"version": VERSION}, argument=("path", r"/[^\x00-\x1f\x7f]{1,1000}"), is_required=True),
    "release verify": Verb({}, argument=("version", VERSION), is_required=True),
}


def command(verb: str, values: Mapping[str, str]) -> list[str]:
    """Return the arguments of glmctl; empty values are left out.

    Raises ValueError for what is no verb and no value of it. Each value is matched as a whole, and the argument follows
    `--`, so that it is never taken for an option.
    """
    if verb not in VERBS:
        raise ValueError(f"{verb[:40]!r} is not one of {', '.join(VERBS)}")
    rules = VERBS[verb]
    name, pattern = rules.argument or ("", "")
    patterns = {**rules.options, **dict.fromkeys(rules.flags, "yes"), **({name: pattern} if name else {})}
    found = verb.split()
    for field, value in values.items():
        if field not in patterns:
            raise ValueError(f"{field[:40]!r} is not a value of {verb}")
        if value and not re.fullmatch(patterns[field], value):
            raise ValueError(f"{field} {value[:100]!r} is not valid for {verb}")
        if value and field != name:
            found.append(f"--{field}" if field in rules.flags else f"--{field}={value}")
    argument = values.get(name, "")
    if rules.is_required and not argument:
        raise ValueError(f"{verb} needs a {name}")
    return [*found, "--", argument] if argument else found


@dataclass(frozen=True)
class Operation:
    """A command of glmctl that an operator ran."""

    id: str
    operator: str
    """The name of the key."""
    arguments: tuple[str, ...]
    """Those of glmctl."""
    started_at: str
    """UTC, ISO 8601."""
    ended_at: str | None = None
    code: int | None = None
    """The exit code; None until it has ended, or if the machine went down meanwhile."""

    def text(self) -> str:
        """Return the record as its file has it."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Request:
    """What an operator asks for."""

    key: str
    verb: str
    """One of `VERBS`; empty: only whose key it is."""
    values: dict[str, str]

    def line(self) -> bytes:
        """Return the request as it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"


def directory(state: Path) -> Path:
    """Return the directory of the operations."""
    return state / "operations"


def socket_path(runtime: Path) -> Path:
    """Return the socket of `glmctl operate`, which exists where operating is on."""
    return runtime / "operate.sock"


def newest(state: Path, count: int | None) -> list[Operation]:
    """Return the last `count` operations, or all, newest first; damaged records are left out."""
    found: list[Operation] = []
    for path in sorted(directory(state).glob("*.json"), reverse=True):
        if len(found) == count:
            break
        try:
            operation = fields.read(Operation, path)
        except (OSError, ValueError):
            continue
        if operation.id == path.stem and _ID.fullmatch(operation.id):
            found.append(operation)
    return found


def output(state: Path, operation: Operation) -> tuple[str, bool]:
    """Return the end of what glmctl printed, and whether it still runs."""
    try:
        descriptor = regular_file.open_for_reading(directory(state) / f"{operation.id}.log")
    except OSError:
        return "", False
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        file.seek(max(0, size - _TAIL))
        text = file.read(_TAIL).decode(errors="replace")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return text, True
        return text, False
