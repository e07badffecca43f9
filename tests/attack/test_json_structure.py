"""JSON that is small as text and large when parsed, or slow to validate: refused before it is worked on."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.batches import lines
from service.chat.bounded_json import JsonBudget, TooComplex
from service.chat.errors import ApiError
from service.chat.request import MAX_STRUCTURE, ChatRequest, parse_request
from tests.batch_fixtures import request_line

ELEMENTS = ["1", "[]", "{}", '""', "null", '{"a":1}', "[[[]]]", "1e9", '{"role":"user","content":"x"}', '{"role":1}']
PLACES = [
    '{"messages":[%s]}',
    '{"messages":[{"role":"user","content":[%s]}]}',
    '{"messages":[{"role":"assistant","tool_calls":[%s]}]}',
    '{"messages":[{"role":"user","content":"x"}],"tools":[%s]}',
    '{"messages":[{"role":"user","content":"x"}],"stop":[%s]}',
    '{"messages":[{"role":"user","content":"x"}],"unknown":[%s]}',
    '{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"schema":{"enum":[%s]}}}}',
    '{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"x":[%s]}}}]}',
    "[%s]",
    "%s",
]
ATTACKS = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
MILLISECONDS_PER_MB = 60  # of processor time, to count and refuse; parsing such a text took 5 s per MB


def flood(place: str, element: str, size: int) -> bytes:
    """A body of about `size` bytes, full of one element."""
    return (place % ",".join([element] * (size // (len(element) + 1)))).encode()


@given(st.sampled_from(PLACES), st.sampled_from(ELEMENTS), st.integers(1 << 20, 4 << 20))
@ATTACKS
def test_too_much_structure_is_refused_before_it_is_parsed(place: str, element: str, size: int) -> None:
    """Whatever the elements are and wherever they stand: little time, little memory, a short error."""
    body = flood(place, element, size)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ApiError) as caught:
        parse_request(body)
    spent = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (caught.value.status, caught.value.code) == (400, "too_complex")
    assert spent < 0.05 + MILLISECONDS_PER_MB * len(body) / 1e9 * 4  # tracemalloc takes time too
    assert peak < 2 << 20
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("place", PLACES[:5])
def test_validation_ends_at_the_first_error(place: str) -> None:
    """One error is collected for a list, not one for each of its elements."""
    document = json.loads(place % ",".join(['{"role":1}'] * 1000))
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(document, context=JsonBudget(MAX_STRUCTURE))
    assert caught.value.error_count() <= 2  # a role, and a missing content


@pytest.mark.parametrize("place", PLACES)
def test_as_much_structure_as_is_allowed_takes_bounded_time(place: str) -> None:
    """Also where it is valid."""
    for element in ("[]", "1", '{"role":"user","content":"x"}'):
        count = (MAX_STRUCTURE - 100) // (1 + sum(map(element.count, ",:[{")))
        body = (place % ",".join([element] * count)).encode()
        started = time.process_time()
        with suppress(ApiError):
            parse_request(body)
        assert time.process_time() - started < 2, element


def test_structure_hidden_in_a_string_is_counted_when_it_is_parsed() -> None:
    """Arguments of tool calls are JSON within JSON, where an escape hides what the text contains."""
    hidden = "\\u005b\\u005d\\u002c" * (MAX_STRUCTURE // 2)
    call = '{"function":{"name":"f","arguments":"{\\"a\\":[' + hidden + '1]}"}}'
    body = ('{"messages":[{"role":"assistant","tool_calls":[' + call + "]}]}").encode()
    with pytest.raises(ApiError, match="too complex"):
        parse_request(body)


@given(st.integers(100, 100_000), st.sampled_from(["[", '{"a":', '[{"a":']))
@ATTACKS
def test_depth_is_bounded(depth: int, opening: str) -> None:
    """Nested values neither overflow a stack nor take long."""
    with pytest.raises(ApiError) as caught:
        parse_request((opening * depth).encode())
    assert caught.value.status == 400


@given(st.binary(max_size=2000) | st.text(alphabet='[]{},:"\\ 1a', max_size=2000).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_what_is_not_refused_is_parsed_as_by_the_standard_library(data: bytes) -> None:
    """The count changes nothing about what is JSON."""
    try:
        expected = json.loads(data)
    except (ValueError, RecursionError):
        expected = None
    try:
        found = JsonBudget(len(data)).parse(data)
    except ValueError:
        return
    assert found == expected


def test_escapes_are_counted() -> None:
    """A string of escapes takes ten times as long as another."""
    with pytest.raises(TooComplex, match="escapes"):
        JsonBudget(100).parse(b'"' + b"\\n" * (5 << 20) + b'"')


def test_a_batch_line_is_counted_too() -> None:
    """A line of an input file is refused by its number, and the worker does not parse it."""
    line = json.dumps(request_line("a")).encode()
    body = flood(
        '{"custom_id":"b","method":"POST","url":"/v1/chat/completions","body":{"messages":[%s]}}', "1", 1 << 20
    )
    parsed = lines.parse_input(io.BytesIO(line + b"\n" + body), max_lines=10, max_length=1 << 25)
    assert parsed is not None
    assert [(error["code"], error["line"]) for error in parsed.errors] == [("line_too_complex", 2)]
