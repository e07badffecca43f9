"""Checks a batch's file before it is sent, as the service will: JSON lines with an identifier, a URL and a body each.

Memory is bounded: one line is parsed at a time, only as far as its structure is within the service's limit, and of an
identifier a digest is kept.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO

import pydantic_core

from ui.picture import MAX_FILE, megabytes

__all__ = ["ENDPOINT", "MAX_PROBLEMS", "BatchLimits", "Checked", "Problem", "Reason", "check"]

ENDPOINT = "/v1/chat/completions"
MAX_PROBLEMS = 20  # of a file that are told
MAX_ID = 512  # characters of a custom_id
MAX_DETAIL = 80  # characters of what was found
STRUCTURE = b"[{,:"  # what makes parsed JSON larger than its text
PLAIN = bytes(set(range(256)) - set(STRUCTURE))


class Reason(StrEnum):
    """What is wrong with a file or a line; the texts have the words."""

    FILE_SIZE = "file_size"
    EMPTY = "empty"
    TOO_MANY = "too_many"
    LINE_SIZE = "line_size"
    COMPLEX = "complex"
    JSON = "json"
    NO_OBJECT = "no_object"
    MISSING = "missing"
    CUSTOM_ID = "custom_id"
    DUPLICATE = "duplicate"
    METHOD = "method"
    URL = "url"
    BODY = "body"


@dataclass(frozen=True)
class Problem:
    """What is wrong at a line, counted from 1; None for the whole file. `found` and `limit` are for its sentence."""

    line: int | None
    reason: Reason
    found: str = ""
    limit: str = ""


@dataclass
class Checked:
    """The number of valid requests, and what is wrong; a file with any problem is not sent."""

    requests: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class BatchLimits:
    """The limits of one file; the defaults are those of the service's settings."""

    file: int = 200 << 20  # bytes
    lines: int = 50_000
    body: int = 32 << 20  # bytes of one line
    structure: int = 150_000  # brackets, commas and colons of one line

    @classmethod
    def from_environment(cls) -> BatchLimits:
        """Return the limits of the GLM_MAX_* variables, which the service reads too, and at most MAX_FILE."""
        names = {
            "file": "GLM_MAX_FILE",
            "lines": "GLM_MAX_BATCH_LINES",
            "body": "GLM_MAX_BODY",
            "structure": "GLM_MAX_STRUCTURE",
        }
        limits = cls(**{field: int(os.environ[name]) for field, name in names.items() if os.environ.get(name)})
        return cls(min(limits.file, MAX_FILE), limits.lines, limits.body, limits.structure)


class _InvalidLineError(ValueError):
    def __init__(self, reason: Reason, found: object = "", limit: object = "") -> None:
        super().__init__(reason)
        self.problem = reason, _short(found), str(limit)


def check(file: BinaryIO, limits: BatchLimits) -> Checked:
    """Return how many requests a file has, and at most MAX_PROBLEMS problems of it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > limits.file:
        return Checked(problems=[Problem(None, Reason.FILE_SIZE, limit=megabytes(limits.file))])
    checked, seen = Checked(), dict[bytes, int]()
    for number, line in _lines(file, limits.body):
        if len(checked.problems) == MAX_PROBLEMS:
            break
        if checked.requests == limits.lines:
            checked.problems.append(Problem(number, Reason.TOO_MANY, limit=str(limits.lines)))
            break
        try:
            custom_id = _custom_id(line, limits)
            digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        except _InvalidLineError as error:
            checked.problems.append(Problem(number, *error.problem))
            continue
        if (first := seen.setdefault(digest, number)) == number:
            checked.requests += 1
        else:
            checked.problems.append(Problem(number, Reason.DUPLICATE, _short(custom_id), str(first)))
    if not checked.requests and not checked.problems:
        checked.problems.append(Problem(None, Reason.EMPTY))
    return checked


def _lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and bytes of each line that is not blank; a longer one is cut at `longest` + 1 bytes."""
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(longest + 1)):
            pass
        if line.strip():
            yield number, line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which some editors write


def _custom_id(line: bytes, limits: BatchLimits) -> str:
    """Return the identifier of a valid line; raises _InvalidLineError."""
    if len(line.rstrip(b"\n")) > limits.body:
        raise _InvalidLineError(Reason.LINE_SIZE, limit=megabytes(limits.body))
    if len(line.translate(None, PLAIN)) > limits.structure:
        raise _InvalidLineError(Reason.COMPLEX, limit=limits.structure)
    request = _parse(line)
    if not isinstance(request, dict):
        raise _InvalidLineError(Reason.NO_OBJECT)
    for name in ("custom_id", "method", "url", "body"):
        if request.get(name) is None:
            raise _InvalidLineError(Reason.MISSING, name)
    custom_id = request["custom_id"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID:
        raise _InvalidLineError(Reason.CUSTOM_ID, limit=MAX_ID)
    if request["method"] != "POST":
        raise _InvalidLineError(Reason.METHOD, request["method"])
    if request["url"] != ENDPOINT:
        raise _InvalidLineError(Reason.URL, request["url"], ENDPOINT)
    if not isinstance(request["body"], dict):
        raise _InvalidLineError(Reason.BODY)
    return custom_id


def _parse(line: bytes) -> Any:
    """Return the value of a line with the parser of the service, which also bounds its depth."""
    try:
        return pydantic_core.from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise _InvalidLineError(Reason.JSON, str(error).replace(" at line 1 ", " at ")) from error


def _short(found: object) -> str:
    text = str(found)
    return text if len(text) <= MAX_DETAIL else f"{text[:MAX_DETAIL]}…"
