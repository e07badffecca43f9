"""The JSONL lines of input files, and those of output and error files."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from service.chat.bounded_json import JsonBudget, TooComplex
from service.chat.errors import error_object
from service.chat.request import MAX_STRUCTURE

__all__ = [
    "ENDPOINT",
    "MAX_ERRORS",
    "InputFile",
    "Task",
    "error_line",
    "parse_input",
    "request_body",
    "response_line",
    "unexecuted_line",
]

ENDPOINT = "/v1/chat/completions"
MAX_ERRORS = 100  # errors reported per file
MAX_ID = 512  # characters of a custom_id
_BLANK = b" \t\r\n"


@dataclass(frozen=True)
class Task:
    """One request of an input file: its line number from 1, offset and length in bytes."""

    line: int
    custom_id: str
    offset: int
    length: int


@dataclass
class InputFile:
    """The requests of an input file, and its errors; a file with any error is rejected."""

    tasks: list[Task] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def add_error(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        """Add an error in OpenAI's form."""
        self.errors.append({"code": code, "line": line, "message": message, "param": param})


class _InvalidLine(ValueError):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def parse_input(
    file: BinaryIO,
    *,
    max_lines: int,
    max_length: int,
    max_structure: int = MAX_STRUCTURE,
    cancelled: Callable[[], bool] = lambda: False,
) -> InputFile | None:
    """Parse a JSONL file, of at most `max_lines` requests with lines of at most `max_length` bytes.

    A line has at most `max_structure` brackets, commas and colons.
    Blank lines are skipped. Returns None if `cancelled` returns true. Invalid content is reported in `errors`.
    """
    parsed = InputFile()
    seen: dict[str, int] = {}
    for number, offset, line, complete in _read_lines(file, max_length):
        if cancelled():
            return None
        if not line.strip(_BLANK):
            continue
        if len(seen) + len(parsed.errors) >= max_lines:
            parsed.add_error("too_many_tasks", f"more than {max_lines} requests in one batch", number)
            break
        try:
            task = Task(number, _validate_line(line, complete, max_length, max_structure), offset, len(line))
        except _InvalidLine as error:
            parsed.add_error(error.code, str(error), number, error.param)
        else:
            if (first := seen.setdefault(task.custom_id, number)) == number:
                parsed.tasks.append(task)
            else:
                parsed.add_error("duplicate_custom_id", f"line {first} has the same custom_id", number, "custom_id")
        if len(parsed.errors) == MAX_ERRORS:
            break
    if not parsed.tasks and not parsed.errors:
        parsed.add_error("empty_file", "the file contains no request")
    return parsed


def request_body(line: bytes) -> dict[str, Any]:
    """Return the request body of a valid input line."""
    body: dict[str, Any] = _load(line)["body"]
    return body


def _read_lines(file: BinaryIO, max_length: int) -> Iterator[tuple[int, int, bytes, bool]]:
    """Yield number, offset and bytes of each line, and whether it is complete.

    Longer lines are cut at `max_length` + 1 bytes, which bounds the memory.
    """
    number, offset = 0, 0
    while line := file.readline(max_length + 1):
        number += 1
        length, complete = len(line), line.endswith(b"\n") or len(line) <= max_length
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(max_length + 1)):
            length += len(rest)
        yield number, offset, line, complete
        offset += length


def _load(line: bytes, budget: JsonBudget | None = None) -> Any:
    if line.startswith(b"\xef\xbb\xbf"):  # a byte order mark, which some editors write
        line = line[3:]
    return (budget or JsonBudget(len(line))).parse(line, cache_strings=True)


def _validate_line(line: bytes, complete: bool, max_length: int, max_structure: int) -> str:
    """Validate one input line and return its custom_id; raises _InvalidLine."""
    if not complete:
        raise _InvalidLine("line_too_long", f"the line is longer than {max_length} bytes")
    try:
        request = _load(line, JsonBudget(max_structure))
    except TooComplex as error:
        raise _InvalidLine("line_too_complex", f"this line is too complex: {error}") from error
    except ValueError as error:
        raise _InvalidLine("invalid_json_line", f"this line is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(request, dict):
        raise _InvalidLine("invalid_json_line", "this line is not a JSON object")
    for name in ("custom_id", "method", "url", "body"):
        if request.get(name) is None:
            raise _InvalidLine("missing_required_parameter", f"{name} is missing", name)
    custom_id = request["custom_id"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID:
        raise _InvalidLine("invalid_custom_id", f"custom_id must be a string of 1 to {MAX_ID} characters", "custom_id")
    if request["method"] != "POST":
        raise _InvalidLine("invalid_method", "method must be POST", "method")
    if request["url"] != ENDPOINT:
        raise _InvalidLine("mismatched_url", f"url must be the batch's endpoint, {ENDPOINT}", "url")
    if not isinstance(request["body"], dict):
        raise _InvalidLine("invalid_body", "body must be a JSON object", "body")
    return custom_id


def response_line(custom_id: str, status: int, body: Mapping[str, Any], *, version: str, slot: str) -> str:
    """Return the output line of a response, successful or not, with the version and slot it is from."""
    response = {
        "status_code": status,
        "request_id": f"req_{uuid.uuid4().hex}",
        "body": body,
        "version": version,
        "slot": slot,
    }
    return _line(custom_id, response, None)


def error_line(custom_id: str, status: int, message: str, code: str) -> str:
    """Return the error line of a request that no version has answered."""
    response = {"status_code": status, "request_id": None, "body": error_object(status, message, code=code)}
    return _line(custom_id, response | {"version": None, "slot": None}, None)


def unexecuted_line(custom_id: str, status: str) -> str:
    """Return the error line of a request that was not executed before its batch was `expired` or `cancelled`."""
    message = {
        "expired": "this request could not be executed before the completion window expired",
        "cancelled": "this request was not executed before the batch was cancelled",
    }[status]
    return _line(custom_id, None, {"code": f"batch_{status}", "message": message})


def _line(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> str:
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))
