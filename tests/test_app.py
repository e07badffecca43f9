"""The HTTP API in front of a fake engine."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message

from service.app import create_app
from service.engine import Conversation, Delta, Finish, Priority, PromptTooLong, Sampling, TokenLogprob, Usage
from service.fairness.client import NOBODY, Client
from service.identity import Identity
from service.settings import Settings

IDENTITY = Identity("1.2.0", "green", 3)
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "now"}}


@dataclass
class FakeEngine:
    """Streams its words; fails or waits before the word with the given number."""

    words: tuple[str, ...] = ("Hel", "lo ", "世界")
    fail_at: int | None = None
    error: Exception = field(default_factory=lambda: RuntimeError("the device is gone"))
    wait_at: int | None = None
    alive: bool = True
    pause: bool = False  # yield to the event loop after each word
    logprobs: tuple[TokenLogprob, ...] = ()  # of each word
    reason: Literal["stop", "length"] = "stop"
    seen: list[tuple[Any, Sampling, bool | None]] = field(default_factory=list)
    tools: list[Sequence[dict[str, Any]]] = field(default_factory=list)
    priorities: list[Priority] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    max_new_tokens: int = 1024
    cancelled: int = 0
    started: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    async def stream(
        self,
        messages: Conversation,
        sampling: Sampling,
        *,
        thinking: bool | None = None,
        tools: Sequence[dict[str, Any]] = (),
        priority: Priority = "interactive",
        client: Client = NOBODY,
    ) -> AsyncIterator[Delta | Finish]:
        self.seen.append((messages, sampling, thinking))
        self.tools.append(tools)
        self.priorities.append(priority)
        self.clients.append(client)
        self.started.put_nowait(None)
        finished = False
        try:
            for number, word in enumerate((*self.words, None)):
                if number == self.fail_at:
                    finished = True
                    raise self.error
                if number == self.wait_at:
                    await asyncio.Event().wait()
                if self.pause:
                    await asyncio.sleep(0)
                yield Finish(self.reason, 7, len(self.words)) if word is None else Delta(word, self.logprobs, 1, 7)
            finished = True
        finally:
            self.cancelled += not finished

    def check_size(self, messages: Conversation, tools: Sequence[dict[str, Any]] = ()) -> int:
        return 7

    @property
    def context_length(self) -> int:
        return 4096

    def usage(self) -> Usage:
        return Usage(1, 2, 30, 400)

    def answering(self) -> bool:
        return self.alive

    def close(self) -> None:
        pass


def settings(**changes: Any) -> Settings:
    return Settings(slot="green", **changes)


def client(engine: FakeEngine | None = None, serving: Callable[[], bool] = lambda: True, **changes: Any) -> TestClient:
    return TestClient(create_app(engine or FakeEngine(), IDENTITY, settings(**changes), serving=serving))


def picture(width: int = 4, height: int = 4) -> str:
    data = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def with_image(url: Any, kind: str = "image_url") -> dict[str, Any]:
    parts = [{"type": "text", "text": "what?"}, {"type": kind, "image_url": url}]
    return {"messages": [{"role": "user", "content": parts}]}


def events(text: str) -> list[Any]:
    found = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in found]


def test_response_is_a_chat_completion() -> None:
    """The response has OpenAI's format, names the served model whatever the request names, and counts tokens."""
    answer = client().post(CHAT, json={**HELLO, "model": "gpt-4o"})
    document = answer.json()
    assert answer.status_code == 200
    assert document["object"] == "chat.completion"
    assert document["model"] == "glm-4.6v-flash"
    assert document["choices"][0]["message"] == {"role": "assistant", "content": "Hello 世界", "refusal": None}
    assert document["choices"][0]["finish_reason"] == "stop"
    assert document["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


@pytest.mark.parametrize("usage", [False, True])
def test_stream_has_role_content_finish_usage_and_done(usage: bool) -> None:
    """Events come in OpenAI's order, with usage only if the request includes it."""
    body = {**HELLO, "stream": True, "stream_options": {"include_usage": usage}}
    answer = client().post(CHAT, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in answer.headers
    *chunks, done = events(answer.text)
    assert done == "[DONE]"
    if usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == 10
        assert all(chunk["usage"] is None for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello 世界"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, None, "stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_request_reaches_the_engine() -> None:
    """Every known field reaches the engine, the developer role becomes system, and images are decoded."""
    engine = FakeEngine()
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": None},
        *with_image({"url": picture(), "detail": "low"})["messages"],
        {"role": "tool", "content": [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]},
        *with_image(picture())["messages"],
        {**with_image(picture())["messages"][0], "role": "tool", "tool_call_id": "call_1"},
    ]
    body = {
        "messages": messages,
        "max_tokens": 9,
        "max_completion_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "seed": -4,
        "stop": "end",
        "n": 1,
        "user": "me",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert client(engine).post(CHAT, json=body).status_code == 200
    [(got, sampling, thinking)] = engine.seen
    assert [message["role"] for message in got] == ["system", "assistant", "user", "tool", "user", "tool"]
    assert [got[0]["content"], got[1]["content"], got[3]["content"]] == ["be brief", "", "42"]
    for message in (got[2], got[4], got[5]):
        assert message["content"][0] == {"type": "text", "text": "what?"}
        assert list(np.asarray(message["content"][1]["image"])[0, 0]) == [255, 0, 0]
    assert sampling == Sampling(max_tokens=5, temperature=0, top_p=0.5, top_k=3, seed=-4, stop=("end",))
    assert thinking is False


def test_nulls_mean_defaults() -> None:
    """Null is equivalent to an omitted field."""
    engine = FakeEngine()
    fields = ("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p")
    more = ("top_k", "seed", "stop", "n", "user", "chat_template_kwargs")
    body = {**HELLO, **dict.fromkeys((*fields, *more))}
    assert client(engine).post(CHAT, json=body).status_code == 200
    assert engine.seen[0][1:] == (Sampling(), None)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/v1/models", "GET", 200),
        ("/v1/models", "POST", 405),
        ("/v1/nothing", "GET", 404),
        (CHAT, "POST", 400),
        (CHAT, "GET", 405),
        ("/v1/models/", "GET", 404),
        ("/metrics", "GET", 200),
    ],
)
def test_every_response_has_version_slot_and_request_id(path: str, method: str, status: int) -> None:
    """Version, slot and request id are on every response, and every error is an error object."""
    answer = client().request(method, path, headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == status
    assert answer.headers["x-model-version"] == "1.2.0"
    assert answer.headers["x-slot"] == "green"
    assert answer.headers["x-request-id"] == "mine-1"
    if status >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("given", ["", " ", "a" * 129, "caf\u00e9", "tab\tbed"])
def test_invalid_request_id_is_replaced(given: str) -> None:
    """Only printable ASCII of at most 128 characters is accepted."""
    answer = client().get("/healthz", headers=[(b"x-request-id", given.encode("latin-1"))])
    assert answer.headers["x-request-id"].startswith("req-")


def test_models_are_listed_and_found_by_name() -> None:
    """The served model is listed and found; any other name is a 404 with code model_not_found."""
    http = client(served_model="zai/glm")
    [listed] = http.get("/v1/models").json()["data"]
    assert http.get("/v1/models/zai/glm").json() == listed
    missing = http.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_health_readiness_and_version() -> None:
    """/healthz depends on the engine, /readyz on the gate too; /version names the process."""
    engine, gate = FakeEngine(), [True]
    http = client(engine, serving=lambda: gate[0])
    http.app_state["internal"] = True  # as the server says of the slot's own socket
    assert (http.get("/healthz").status_code, http.get("/healthz").json()) == (200, {"status": "alive"})
    assert http.get("/readyz").status_code == 200
    gate[0] = False
    assert http.get("/readyz").json()["why"] == "the gate is closed"
    assert (http.get("/readyz").status_code, http.get("/healthz").status_code) == (503, 200)
    assert http.post(CHAT, json=HELLO).status_code == 200, "a candidate answers while its gate is closed"
    http.app_state["internal"] = False
    assert http.get("/readyz").status_code == 200, "the gate has let a client's request in"
    gate[0], engine.alive = True, False
    assert (http.get("/readyz").status_code, http.get("/healthz").status_code) == (503, 503)
    version = http.get("/version").json()
    assert version == {
        "version": "1.2.0",
        "slot": "green",
        "generation": 3,
        "model": "glm-4.6v-flash",
        "pid": os.getpid(),
    }


def field_of(change: dict[str, Any]) -> dict[str, Any]:
    return {**HELLO, **change}


def content_of(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


INVALID_FIELDS: list[tuple[Any, str | None]] = [
    ({}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0]"),
    (content_of(None), "messages[0]"),
    (content_of([]), "messages[0]"),
    (content_of(5), "messages[0].content"),
    (content_of({"type": "text", "text": "x"}), "messages[0].content"),
    (content_of("x", role="boss"), "messages[0].role"),
    (content_of(["x"]), "messages[0].content[0]"),
    (content_of([{"type": "audio"}]), "messages[0].content[0]"),
    (content_of([{"text": "x"}]), "messages[0].content[0]"),
    (content_of([{"type": "text"}]), "messages[0].content[0].text"),
    (content_of([{"type": "text", "text": 5}]), "messages[0].content[0].text"),
    (content_of([{"type": "image_url"}]), "messages[0].content[0].image_url"),
    (content_of([{"type": "image_url", "image_url": {}}]), "messages[0].content[0].image_url.url"),
    (content_of([{"type": "image_url", "image_url": picture()}], role="system"), "messages[0]"),
    (field_of({"model": 5}), "model"),
    (field_of({"stream": "yes"}), "stream"),
    (field_of({"stream_options": {"include_usage": True}}), "stream_options"),
    (field_of({"stream": True, "stream_options": []}), "stream_options"),
    (field_of({"max_tokens": 0}), "max_tokens"),
    (field_of({"max_tokens": 1.5}), "max_tokens"),
    (field_of({"max_tokens": True}), "max_tokens"),
    (field_of({"max_tokens": 10**30}), "max_tokens"),
    (field_of({"max_completion_tokens": "9"}), "max_completion_tokens"),
    (field_of({"temperature": 2.1}), "temperature"),
    (field_of({"temperature": -0.1}), "temperature"),
    (field_of({"temperature": "0.5"}), "temperature"),
    (field_of({"temperature": [1]}), "temperature"),
    (field_of({"top_p": 0}), "top_p"),
    (field_of({"top_p": 1.01}), "top_p"),
    (field_of({"top_k": -2}), "top_k"),
    (field_of({"seed": 2**63}), "seed"),
    (field_of({"seed": 1.0}), "seed"),
    (field_of({"stop": ["a"] * 5}), "stop"),
    (field_of({"stop": ""}), "stop[0]"),
    (field_of({"stop": ["a", 5]}), "stop[1]"),
    (field_of({"n": 9}), "n"),
    (field_of({"n": 0}), "n"),
    (field_of({"user": {}}), "user"),
    (field_of({"min_p": 1.1}), "min_p"),
    (field_of({"repetition_penalty": 0}), "repetition_penalty"),
    (field_of({"presence_penalty": 3}), "presence_penalty"),
    (field_of({"frequency_penalty": "1"}), "frequency_penalty"),
    (field_of({"logprobs": 3}), "logprobs"),
    (field_of({"top_logprobs": 3}), "top_logprobs"),
    (field_of({"logprobs": True, "top_logprobs": 21}), "top_logprobs"),
    (field_of({"response_format": "json"}), "response_format"),
    (field_of({"response_format": {"type": "grammar"}}), "response_format"),
    (field_of({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
    (field_of({"response_format": {"type": "json_schema", "json_schema": {}}}), "response_format.json_schema.schema"),
    (field_of({"response_format": {"type": "json_object"}, "guided_json": {}}), "response_format"),
    (field_of({"tools": {}}), "tools"),
    (field_of({"tools": [{"type": "code_interpreter"}]}), "tools[0].type"),
    (field_of({"tools": [{"type": "function"}]}), "tools[0].function"),
    (field_of({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name"),
    (
        field_of({"tools": [{"type": "function", "function": {"name": "a", "parameters": "x"}}]}),
        "tools[0].function.parameters",
    ),
    (field_of({"tool_choice": "required"}), "tool_choice"),
    (field_of({"tools": [TOOL], "tool_choice": "any"}), "tool_choice"),
    (field_of({"tools": [TOOL], "tool_choice": {}}), "tool_choice.type"),
    (field_of({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}), "tool_choice"),
    (field_of({"logit_bias": {"50256": -101}}), "logit_bias.50256"),
    (field_of({"functions": [{"name": "f"}]}), "functions"),
    (field_of({"function_call": "auto"}), "function_call"),
    (field_of({"audio": {"voice": "alloy"}}), "audio"),
    (field_of({"modalities": ["text", "audio"]}), "modalities"),
    (field_of({"web_search_options": {"a": 1}}), "web_search_options"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}]},
        "messages[0]",
    ),
    (field_of({"chat_template_kwargs": {"enable_thinking": "no"}}), "chat_template_kwargs.enable_thinking"),
    (with_image("https://example.org/x.png"), "messages[0].content[1].image_url"),
    (with_image({"url": "http://169.254.169.254/"}), "messages[0].content[1].image_url"),
    (with_image("file:///etc/passwd"), "messages[0].content[1].image_url"),
    (with_image("data:image/png;base64,AAAA"), "messages[0].content[1].image_url"),
    (with_image("data:image/png;base64,%%%"), "messages[0].content[1].image_url"),
    (with_image(picture(60, 60)), "messages[0].content[1].image_url"),
]


@pytest.mark.parametrize(("body", "param"), INVALID_FIELDS)
def test_invalid_field_is_a_400_that_names_it(body: Any, param: str | None) -> None:
    """An invalid field is a 400, and `param` is its path."""
    engine = FakeEngine()
    answer = client(engine, max_pixels=50 * 50).post(CHAT, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["param"] == param
    assert len(answer.json()["error"]["message"]) < 500
    assert not engine.seen


@pytest.mark.parametrize(
    ("kind", "instead"),
    [("video_url", "send frames"), ("input_audio", "send what is said as text"), ("file", "send pages as images")],
)
def test_other_media_are_refused_with_what_to_send_instead(kind: str, instead: str) -> None:
    """A video, audio or file is named, for every role."""
    for role in ("user", "tool"):
        answer = client().post(CHAT, json=content_of([{"type": kind, kind: {"url": "data:,x"}}], role))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "messages[0].content[0]"
        assert f'not supported (type "{kind}")' in error["message"]
        assert instead in error["message"]


INVALID_BODIES = [
    b"",
    b"   ",
    b"{",
    b"nonsense",
    b"null",
    b"5",
    b'"text"',
    b"[]",
    b"\x00\x01\x02",
    b"\xff\xfe",
    b'{"messages":[{"role":"user","content":"\xff"}]}',
    b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"messages":[{"role":"user","content":"\\udc00\\ud800"}]}',
    b'{"messages":[{"role":"user","content":"hi"}],"temperature":NaN}',
    b'{"messages":[{"role":"user","content":"hi"}],"unknown":NaN}',
    b'{"messages":[{"role":"user","content":"hi"}],"temperature":Infinity}',
    b'{"messages":[{"role":"user","content":"hi"}],"temperature":1e999}',
    b'{"messages":[{"role":"user","content":"hi"}],"seed":' + b"9" * 5000 + b"}",
    b'{"messages":[{"role":"user","content":"hi"}],"seed":-' + b"9" * 100_000 + b"}",
    b'{"messages":[{"role":"user","content":"hi"}],"top_k":1e400}',
    b'{"messages":[{"role":"user","content":"hi"}]} trailing',
    b'{"messages":[{"role":"user","content":"hi"}],}',
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"messages":[{"role":"user","content":' + b"[" * 150 + b"]" * 150 + b"}]}",
    b'{"messages":[{"role":"' + b"x" * 100_000 + b'","content":"hi"}]}',
    b'{"messages":[{"role":"user","content":[{"type":"' + b"x" * 100_000 + b'"}]}]}',
    b"{'messages': 'single quotes'}",
    b'{"messages":[{"role":"user","content":"hi"}],"response_format":{"type":"json_schema","json_schema":{"schema":{"a":1e999}}}}',
    b'{"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"a":1e999}}}]}',
    b'{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"' + b"[" * 9999 + b'"}}]}]}',
    json.dumps(HELLO).encode("utf-16"),
    b"\xef\xbb\xbf[]",
]


@pytest.mark.parametrize("body", INVALID_BODIES, ids=range(len(INVALID_BODIES)))
def test_invalid_body_is_a_400(body: bytes) -> None:
    """Any bytes that are not a valid request are a 400 with a short message."""
    answer = client().post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text[:300]
    assert len(answer.json()["error"]["message"]) < 500


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        (None, 200),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("", 415),
    ],
)
def test_content_type_must_be_json_or_missing(kind: str | None, status: int) -> None:
    """A content type other than JSON is a 415; without one the body is parsed as JSON."""
    headers = {} if kind is None else {"content-type": kind}
    assert client().post(CHAT, content=json.dumps(HELLO), headers=headers).status_code == status


def test_body_with_too_large_content_length_is_not_read() -> None:
    """A Content-Length beyond the limit is a 413 before the first byte is read, and closes the connection."""
    received: list[str] = []

    async def receive() -> Message:
        received.append("http.request")
        return {"type": "http.request", "body": b"x", "more_body": True}

    answer = asyncio.run(raw(FakeEngine(), receive, [(b"content-length", b"9" * 30)], max_body=100))
    assert answer[0]["status"] == 413
    assert (b"connection", b"close") in answer[0]["headers"]
    assert not received


def test_chunked_body_is_read_up_to_the_limit() -> None:
    """Without a Content-Length reading stops when the limit is exceeded."""
    count = 0

    async def receive() -> Message:
        nonlocal count
        count += 1
        return {"type": "http.request", "body": b"x" * 40, "more_body": count < 9}

    answer = asyncio.run(raw(FakeEngine(), receive, max_body=100))
    assert (answer[0]["status"], count) == (413, 3)


def test_too_many_images_are_rejected() -> None:
    """The number of images is limited."""
    parts = [{"type": "image_url", "image_url": {"url": picture()}}] * 3
    answer = client(max_images=2).post(CHAT, json=content_of(parts))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_prompt_is_a_400(stream: bool) -> None:
    """PromptTooLong becomes OpenAI's context_length_exceeded, for streams too."""
    engine = FakeEngine(fail_at=0, error=PromptTooLong(9, 8))
    answer = client(engine).post(CHAT, json={**HELLO, "stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(("stream", "fail_at"), [(False, 0), (False, 2), (True, 0)])
def test_engine_failure_is_a_500_logged_once(stream: bool, fail_at: int, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets an error object with the request's id and no details; the log has both, once."""
    answer = client(FakeEngine(fail_at=fail_at)).post(
        CHAT, json={**HELLO, "stream": stream}, headers={"x-request-id": "r7"}
    )
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "r7" in answer.json()["error"]["message"]
    assert "device" not in answer.text
    assert answer.headers["x-slot"] == "green"
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "r7" in record.getMessage()
    assert record.exc_info


def test_engine_failure_ends_a_stream_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """The last event is the error object, without [DONE]."""
    answer = client(FakeEngine(fail_at=2)).post(CHAT, json={**HELLO, "stream": True})
    *_, last = events(answer.text)
    assert last["error"]["type"] == "server_error"
    assert "[DONE]" not in answer.text
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def scope(headers: list[tuple[bytes, bytes]] | None = None) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers or [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


async def raw(engine: FakeEngine, receive: Any, headers: Any = None, **changes: Any) -> list[Message]:
    """Call the application as an ASGI server does and return the messages it sends."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    app = create_app(engine, IDENTITY, settings(**changes), serving=lambda: True)
    async with asyncio.timeout(5):
        await app(scope(headers), receive, send)
    return sent


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wait_at", [0, 2])
def test_disconnect_cancels_the_generation(stream: bool, wait_at: int) -> None:
    """When the client disconnects, its request is cancelled, whether or not the engine has started it."""
    engine = FakeEngine(wait_at=wait_at)
    messages = iter([{"type": "http.request", "body": json.dumps({**HELLO, "stream": stream}).encode()}])

    async def receive() -> Message:
        for message in messages:
            return message
        if not engine.seen:
            await engine.started.get()
        await asyncio.sleep(0.02)
        return {"type": "http.disconnect"}

    sent = asyncio.run(raw(engine, receive))
    assert engine.cancelled == 1
    assert not any(message.get("body") and b"[DONE]" in message["body"] for message in sent)
    assert all(message.get("more_body") for message in sent if message["type"] == "http.response.body")


def test_disconnect_during_the_upload_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A disconnect in the middle of the body calls no engine and logs nothing."""
    messages: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Message:
        return messages.pop()

    engine = FakeEngine()
    assert asyncio.run(raw(engine, receive)) == []
    assert not engine.seen
    assert not caplog.records


def test_full_queue_is_a_429_with_retry_after() -> None:
    """Requests beyond max_queue are rejected until a waiting one disconnects."""

    async def scenario() -> tuple[list[Message], list[Message]]:
        engine = FakeEngine(wait_at=0)
        app = create_app(engine, IDENTITY, settings(max_queue=2), serving=lambda: True)

        async def post(sent: list[Message], disconnect: asyncio.Event) -> None:
            body = iter([{"type": "http.request", "body": json.dumps(HELLO).encode()}])

            async def receive() -> Message:
                for message in body:
                    return message
                await disconnect.wait()
                return {"type": "http.disconnect"}

            async def send(message: Message) -> None:
                sent.append(message)

            await app(scope(), receive, send)

        disconnect, never = asyncio.Event(), asyncio.Event()
        waiting = [asyncio.create_task(post([], disconnect)), asyncio.create_task(post([], never))]
        for _ in waiting:
            await engine.started.get()
        rejected: list[Message] = []
        await post(rejected, never)
        disconnect.set()
        await waiting[0]
        engine.wait_at = None
        accepted: list[Message] = []
        await post(accepted, never)
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return rejected, accepted

    rejected, accepted = asyncio.run(scenario())
    assert rejected[0]["status"] == 429
    assert dict(rejected[0]["headers"])[b"retry-after"] == b"1"
    assert accepted[0]["status"] == 200


def test_metrics_of_all_processes_are_in_one_scrape(tmp_path: Path) -> None:
    """With a shared directory a scrape covers every process, and a forgotten one has no requests in flight."""
    program = """
import sys
from service import metrics
one = metrics.Metrics(sys.argv[1], "blue")
one.set_in_flight(1); one.count_tokens(5)
metrics.count_request(sys.argv[1], "blue", "/x", "200", 0.1); metrics.flush()
metrics.set_load_seconds(sys.argv[1], "blue", {"reading": 2.5})
import os
if sys.argv[1] == "two":
    metrics.forget_worker(int(sys.argv[2]))
    print(metrics.render().decode())
else:
    print(os.getpid())
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "not" / "yet")}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    text = run("two", run("one").strip())
    for version in ("one", "two"):
        assert f'glm_requests_total{{route="/x",slot="blue",status="200",version="{version}"}} 1.0' in text
        assert f'glm_generated_tokens_total{{slot="blue",version="{version}"}} 5.0' in text
    assert 'glm_requests_in_flight{slot="blue",version="two"} 1.0' in text
    assert 'glm_requests_in_flight{slot="blue",version="one"}' not in text
    assert 'glm_model_load_seconds{slot="blue",version="two"} 2.5' in text


@pytest.fixture(autouse=True)
def _no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove GLM_* variables from the environment."""
    for name in [name for name in os.environ if name.startswith("GLM_")]:
        monkeypatch.delenv(name)


def test_application_imports_neither_torch_nor_transformers() -> None:
    """The application and the checks are imported by the master too, which must stay small."""
    program = "import sys, service.app, service.process.checks; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
