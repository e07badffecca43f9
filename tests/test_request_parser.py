"""Large bodies are parsed as small ones are, and what is refused of them is refused in another process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.chat import request_parser
from service.chat.errors import ApiError
from service.chat.request import ChatRequest, parse_request
from service.chat.request_parser import INLINE, RequestParser
from service.fairness.client import NOBODY
from service.isolation.processes import Died
from service.settings import Settings

USER = {"role": "user", "content": "hi"}
VALUES = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=2) | st.lists(st.just(USER), max_size=2)
BODIES = st.dictionaries(
    st.sampled_from(["messages", "n", "stop", "tools", "temperature", "response_format", "stream_options", "other"]),
    VALUES,
).map(lambda document: json.dumps({"messages": [USER]} | document).encode()) | st.binary(max_size=20)


@pytest.fixture(scope="module")
def parser() -> Iterator[RequestParser]:
    found = RequestParser(Settings(slot="blue", max_prompt_tokens=1000))
    yield found
    found.close()


def outcome(parse: Any) -> Any:
    """The request, or what the client is told."""
    try:
        return parse()
    except ApiError as error:
        return str(error), error.status, error.param, error.code


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(BODIES)
def test_a_large_body_is_parsed_like_a_small_one(parser: RequestParser, body: bytes) -> None:
    """The same request, or the same error."""
    large = b" " * INLINE + body
    assert outcome(lambda: asyncio.run(parser.parse(large, NOBODY, ChatRequest))) == outcome(
        lambda: parse_request(large)
    )


TEXT = [{"role": "user", "content": "x" * 9000}]


@pytest.mark.parametrize(
    ("more", "param", "code", "reason"),
    [
        ({"messages": TEXT}, "messages", "context_length_exceeded", "maximum context length is 1000 tokens"),
        ({"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 9000}}]}, "messages",
         "context_length_exceeded", "maximum context length is 1000 tokens"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}}},
         "response_format", None, "at most 65536 are allowed"),
        ({"messages": []}, "messages", None, "too few items"),
    ],
)  # fmt: skip
def test_what_is_refused_of_a_large_body_is_refused_elsewhere(
    parser: RequestParser, more: dict[str, Any], param: str, code: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is parsed in this process."""
    monkeypatch.setattr(request_parser, "parse_body", None)
    body = b" " * INLINE + json.dumps({"messages": [USER], **more}).encode()
    with pytest.raises(ApiError, match=reason) as error:
        asyncio.run(parser.parse(body, NOBODY, ChatRequest))
    assert (error.value.status, error.value.param, error.value.code) == (400, param, code)


def test_images_are_no_text(parser: RequestParser) -> None:
    """The URL of an image may be as long as the body."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    body = json.dumps({"messages": [{"role": "user", "content": [image]}]}).encode()
    assert isinstance(asyncio.run(parser.parse(body, NOBODY, ChatRequest)), ChatRequest)


def test_a_body_that_ends_the_process_is_refused(parser: RequestParser, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, and the next one is parsed."""

    def die(*_: object) -> None:
        raise Died("it takes more than 3 s of processor time")

    body = b" " * INLINE + json.dumps({"messages": [USER]}).encode()
    with monkeypatch.context() as patch:
        patch.setattr(parser._processes, "call", die)
        with pytest.raises(ApiError, match="cannot be parsed: it takes more than 3 s"):
            asyncio.run(parser.parse(body, NOBODY, ChatRequest))
    assert isinstance(asyncio.run(parser.parse(body, NOBODY, ChatRequest)), ChatRequest)
