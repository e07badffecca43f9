"""The lines of an input file, and those of an output file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pydantic_core

from service.chat.errors import error_object

__all__ = ["ENDPOINT", "MAX_ERRORS", "Reading", "Task", "answered", "check", "document", "refused", "unexecuted"]

ENDPOINT = "/v1/chat/completions"
MAX_ERRORS = 100  # of one file that are told; the first ones
MAX_ID = 512  # characters of a custom_id
_BLANK = b" \t\r\n"


@dataclass(frozen=True)
class Task:
    """One request: its line (from 1), and where that lies in the file, in bytes."""

    line: int
    custom_id: str
    offset: int
    length: int


@dataclass
class Reading:
    """What a file holds. With any error in it, it is no batch."""

    tasks: list[Task] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def complain(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        """Note an error as OpenAI has it."""
        self.errors.append({"code": code, "line": line, "message": message, "param": param})


class _Wrong(ValueError):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def check(
    file: BinaryIO, *, max_lines: int, max_length: int, go_on: Callable[[], bool] = lambda: True
) -> Reading | None:
    """Read a JSONL file; blank lines are nothing. None when `go_on` said no. Raises nothing, whatever the bytes."""
    reading = Reading()
    seen: dict[str, int] = {}
    for number, offset, line, whole in _lines(file, max_length):
        if not go_on():
            return None
        if not line.strip(_BLANK):
            continue
        if len(seen) + len(reading.errors) >= max_lines:
            reading.complain("too_many_tasks", f"more than {max_lines} requests in one batch", number)
            break
        try:
            task = Task(number, _custom_id(line, whole, max_length), offset, len(line))
        except _Wrong as error:
            reading.complain(error.code, str(error), number, error.param)
        else:
            if (before := seen.setdefault(task.custom_id, number)) == number:
                reading.tasks.append(task)
            else:
                reading.complain("duplicate_custom_id", f"line {before} has the same custom_id", number, "custom_id")
        if len(reading.errors) == MAX_ERRORS:
            break
    if not reading.tasks and not reading.errors:
        reading.complain("empty_file", "the file holds no request")
    return reading


def document(line: bytes) -> dict[str, Any]:
    """The request's body, of a line that was checked."""
    body: dict[str, Any] = _parse(line)["body"]
    return body


def _lines(file: BinaryIO, max_length: int) -> Iterator[tuple[int, int, bytes, bool]]:
    """Number, offset and bytes of each line, and whether that is all of it; never more than `max_length` in memory."""
    number, offset = 0, 0
    while line := file.readline(max_length + 1):
        number += 1
        length, whole = len(line), line.endswith(b"\n") or len(line) <= max_length
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(max_length + 1)):
            length += len(rest)
        yield number, offset, line, whole
        offset += length


def _parse(line: bytes) -> Any:
    if line.startswith(b"\xef\xbb\xbf"):  # a byte order mark, as some editors put before the first line
        line = line[3:]
    return pydantic_core.from_json(line, allow_inf_nan=False, cache_strings="keys")


def _custom_id(line: bytes, whole: bool, max_length: int) -> str:
    """Check one line and return its name; raises _Wrong."""
    if not whole:
        raise _Wrong("line_too_long", f"the line is longer than {max_length} bytes")
    try:
        found = _parse(line)
    except ValueError as error:
        raise _Wrong("invalid_json_line", f"this line is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise _Wrong("invalid_json_line", "this line is not a JSON object")
    for name in ("custom_id", "method", "url", "body"):
        if found.get(name) is None:
            raise _Wrong("missing_required_parameter", f"{name} is missing", name)
    custom_id = found["custom_id"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID:
        raise _Wrong("invalid_custom_id", f"custom_id must be a string of 1 to {MAX_ID} characters", "custom_id")
    if found["method"] != "POST":
        raise _Wrong("invalid_method", "method must be POST", "method")
    if found["url"] != ENDPOINT:
        raise _Wrong("mismatched_url", f"url must be the batch's endpoint, {ENDPOINT}", "url")
    if not isinstance(found["body"], dict):
        raise _Wrong("invalid_body", "body must be a JSON object", "body")
    return custom_id


def answered(custom_id: str, status: int, body: Mapping[str, Any], *, version: str, slot: str) -> str:
    """A line that carries an answer, good or bad, and who gave it."""
    response = {
        "status_code": status,
        "request_id": f"req_{uuid.uuid4().hex}",
        "body": body,
        "version": version,
        "slot": slot,
    }
    return _line(custom_id, response, None)


def refused(custom_id: str, status: int, message: str, code: str) -> str:
    """A line of a request that got no answer from any version."""
    response = {"status_code": status, "request_id": None, "body": error_object(status, message, code=code)}
    return _line(custom_id, response | {"version": None, "slot": None}, None)


def unexecuted(custom_id: str, status: str) -> str:
    """A line of a request that was not answered before its batch was `expired` or `cancelled`."""
    why = {
        "expired": "this request could not be executed before the completion window expired",
        "cancelled": "this request was not executed before the batch was cancelled",
    }[status]
    return _line(custom_id, None, {"code": f"batch_{status}", "message": why})


def _line(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> str:
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))
