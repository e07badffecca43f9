"""POST /v1/responses: the same answers as chat, in the format of OpenAI's package, whole and in events."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from service.chat.engine_request import ChoiceItem, ResponseHead
from service.chat.errors import ApiError
from service.chat.output_parser import OutputParser
from service.engine import Delta, Finish
from service.responses.request import ResponsesRequest
from tests.test_app import FakeEngine, client, events

URL = "/v1/responses"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: dict[str, Any] = {"type": "function", "name": "weather", "parameters": PARAMETERS}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CALL = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Ulm</arg_value>\n</tool_call>"
OUTPUTS = ("<think>I see.</think>42", "42", f"<think>hm</think>Let me see.\n{CALL}", CALL * 2, "<think>cut off", "")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def pieces(text: str, cuts: list[int]) -> tuple[str, ...]:
    """The text in pieces."""
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return tuple(text[a:b] for a, b in itertools.pairwise(bounds))


def respond(engine: FakeEngine, status: int = 200, **more: Any) -> Any:
    answer = client(engine).post(URL, json={"input": "hi", **more})
    assert answer.status_code == status, answer.text
    document = answer.json()
    if status == 200:
        Response.model_validate(document, strict=True)
    return document


def stream(engine: FakeEngine, **more: Any) -> list[Any]:
    text = client(engine).post(URL, json={"input": "hi", "stream": True, **more}).text
    found = events("".join(line for line in text.splitlines(keepends=True) if not line.startswith("event:")))
    for event in found:
        TypeAdapter(ResponseStreamEvent).validate_python(event)
    return found


def plain(items: list[Any]) -> list[Any]:
    """Items without the numbers that each response has of its own."""
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in items]


def answered(output: tuple[str, ...]) -> tuple[dict[str, Any], list[Any]]:
    """The response to an output that comes in these pieces, whole and as events."""
    form = ResponsesRequest.model_validate({"input": "hi", "tools": [TOOL]}).answer_format()
    head = ResponseHead("1", 2, "glm", "1.0.0")

    async def items() -> AsyncGenerator[ChoiceItem, None]:
        for text in output:
            yield 0, Delta(text)
        yield 0, Finish("stop", 1, len(output))

    async def answer() -> tuple[dict[str, Any], list[Any]]:
        def parsers() -> list[OutputParser]:
            return [OutputParser(thinking=True, boxes=False, tools=[WEATHER])]

        whole = await form.collect(items(), parsers(), head)
        rest = items()
        found = [event async for event in form.encode(await anext(rest), rest, parsers(), head, "id")]
        return dict(whole), [
            json.loads(text.partition("data: ")[2]) for text in b"".join(found).decode().split("\n\n") if text
        ]

    return asyncio.run(answer())


@given(st.sampled_from(OUTPUTS), st.lists(st.integers(0, 200)))
def test_events_tell_of_the_same_items_however_the_output_is_cut(text: str, cuts: list[int]) -> None:
    """The last event holds the whole response; what the others tell adds up to its items, in order, each ended once."""
    whole, found = answered(pieces(text, cuts))
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [event["type"] for event in found[:2]] == ["response.created", "response.in_progress"]
    last = found[-1]["response"]
    assert found[-1]["type"] == f"response.{whole['status']}"
    assert plain(last["output"]) == plain(whole["output"])
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    added = [event["item"]["id"] for event in found if event["type"] == "response.output_item.added"]
    assert added == [item["id"] for item in done]
    for index, item in enumerate(done):
        deltas = [event for event in found if event["type"].endswith(".delta") and event["output_index"] == index]
        assert {event["item_id"] for event in deltas} <= {item["id"]}
        assert "".join(event["delta"] for event in deltas) == text_of(item)


def text_of(item: dict[str, Any]) -> str:
    """What an item says."""
    return str(item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])


def test_an_answer_has_reasoning_text_and_calls() -> None:
    """Each is an item; the text of a call is JSON, and its `call_id` is its own."""
    document = respond(FakeEngine((OUTPUTS[2],)), tools=[TOOL], metadata={"a": "b"}, instructions="Be kind.")
    reasoning, message, call = document["output"]
    assert (reasoning["content"], message["content"][0]["text"]) == ([{"type": "reasoning_text", "text": "hm"}],
                                                                      "Let me see.")  # fmt: skip
    assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Ulm"})
    assert call["call_id"].startswith("call_")
    assert (document["metadata"], document["instructions"], document["store"]) == ({"a": "b"}, "Be kind.", False)


@pytest.mark.parametrize("streamed", [True, False])
def test_an_output_that_is_cut_off_is_incomplete(streamed: bool) -> None:
    """So is its last item, and the reason is given."""
    engine = FakeEngine(("Hel", "lo"), reason="length")
    document = stream(engine)[-1]["response"] if streamed else respond(engine)
    assert document["status"] == document["output"][-1]["status"] == "incomplete"
    assert document["incomplete_details"] == {"reason": "max_output_tokens"}


def test_the_output_of_a_response_is_the_input_of_the_next() -> None:
    """Reasoning, text and calls become one message of the assistant, as the chat template takes them."""
    output = respond(FakeEngine((OUTPUTS[2],)), tools=[TOOL])["output"]
    result = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "sun"}
    engine = FakeEngine()
    conversation = [{"role": "user", "content": "hi"}, *output, result, {"role": "user", "content": "and now?"}]
    respond(engine, input=conversation, instructions="Be kind.", tools=[TOOL])
    system, user, assistant, tool, last = engine.seen[0][0]
    assert [message["content"] for message in (system, user, tool, last)] == ["Be kind.", "hi", "sun", "and now?"]
    assert (assistant["reasoning_content"], assistant["content"]) == ("hm", "Let me see.")
    [call] = assistant["tool_calls"]
    assert call["id"] == tool["tool_call_id"] == output[-1]["call_id"]
    assert call["function"] == {"name": "weather", "arguments": {"city": "Ulm"}}
    assert engine.tools == [[WEATHER]]


def test_assistant_turns_are_divided_where_a_new_one_begins() -> None:
    """Text after a call, and reasoning after a text, begin another message."""
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    say = {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]}
    think = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]}
    engine = FakeEngine()
    respond(engine, input=[think, say, say, call, call, say, think, call])
    found = [
        (one.get("reasoning_content"), one["content"], len(one.get("tool_calls", ()))) for one in engine.seen[0][0]
    ]
    assert found == [("t", "aa", 2), (None, "a", 0), ("t", "", 1)]


def test_fields_mean_what_they_mean_in_chat() -> None:
    """Sampling, schema, demanded calls and reasoning reach the engine as from a chat request."""
    engine = FakeEngine()
    http = client(engine)
    fields: dict[str, Any] = {"temperature": 0.5, "top_p": 0.5, "parallel_tool_calls": False}
    schema = {"type": "json_schema", "name": "a", "schema": SCHEMA}
    http.post(
        URL,
        json={"input": "hi", **fields, "max_output_tokens": 5, "include": ["message.output_text.logprobs"],
              "top_logprobs": 2, "text": {"format": schema}, "reasoning": {"effort": "none"}, "tools": [TOOL]},
    )  # fmt: skip
    http.post(URL, json={"input": "hi", "tools": [TOOL], "tool_choice": {"type": "function", "name": "weather"}})
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    chat = {"messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER]}
    http.post(
        "/v1/chat/completions",
        json={**chat, **fields, "max_tokens": 5, "logprobs": True, "top_logprobs": 2, "response_format": form,
              "chat_template_kwargs": {"enable_thinking": False}},
    )  # fmt: skip
    named = {"type": "function", "function": {"name": "weather"}}
    http.post("/v1/chat/completions", json={**chat, "tool_choice": named})
    ours, ours_named, theirs, theirs_named = engine.seen
    assert (ours, ours_named) == (theirs, theirs_named)


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"store": True}, "store", "not stored"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "send the whole conversation"),
        ({"background": True}, "background", "not supported"),
        ({"truncation": "auto"}, "truncation", "not shortened"),
        ({"include": ["file_search_call.results"]}, "include", "file_search_call.results"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "item_reference", "id": "rs_1"}]}, "input[0]", "message, function_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]", "input_image"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}]},
         "input[0].content[0].image_url", "not an image"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]},
         "input[0].arguments", "JSON object"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "no tools of its own"),
        ({"tool_choice": "required"}, "tool_choice", "only allowed with tools"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}}, "text.format", "not"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], param: str, reason: str) -> None:
    """The error names the field as this format calls it."""
    error = respond(FakeEngine(), 400, **fields)["error"]
    assert error["param"] == param
    assert reason in error["message"]


def test_a_picture_reaches_the_engine() -> None:
    """As a part of its message, also in the output of a function."""
    url = "data:image/gif;base64," + base64.b64encode(
        b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
    ).decode()  # fmt: skip
    engine = FakeEngine()
    content = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": url, "detail": "auto"},
    ]
    respond(engine, input=[{"role": "user", "content": content}])
    [message] = engine.seen[0][0]
    assert [part["type"] for part in message["content"]] == ["text", "image"]


def test_an_error_after_the_first_event_fails_the_response() -> None:
    """The last event says so, with what was written until then."""
    engine = FakeEngine(("Hel", "lo"), error=ApiError(429, "too late", code="queue_timeout"), fail_at=1)
    last = stream(engine)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "rate_limit_exceeded", "message": "too late"}


def test_the_openai_package_reads_answers_and_streams() -> None:
    """Its helper for streams rebuilds the response that a whole answer has."""
    http = client(FakeEngine((OUTPUTS[2],)))
    package = OpenAI(api_key="none", base_url="http://testserver/v1", http_client=http)
    arguments: Any = {"model": "glm", "input": "hi", "tools": [{**TOOL, "strict": False}]}
    whole = package.responses.create(**arguments)
    with package.responses.stream(**arguments) as found:
        streamed = found.get_final_response()
    assert whole.output_text == streamed.output_text == "Let me see."
    assert [item.type for item in streamed.output] == [item.type for item in whole.output]
