"""Chat completions in OpenAI's format, in front of a fake engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter
from starlette.types import Message

from service.app import create_app
from service.chat.errors import ApiError
from service.chat.service import ChatService
from service.engine import Grammar, QueueTimeout, Refused, Sampling, TokenLogprob
from tests.test_app import CHAT, HELLO, IDENTITY, FakeEngine, client, events, raw, settings

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of today",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = (
    "Let me see.\n",
    "<tool_call>wea",
    "ther\n<arg_key>city</arg_key>\n<arg_value>U",
    "lm</arg_value>\n</tool_",
    "call>",
)


def complete(
    engine: FakeEngine, *, status: int = 200, limits: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    answer = client(engine, **(limits or {})).post(CHAT, json={**HELLO, **more})
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    if status == 200:
        ChatCompletion.model_validate(document, strict=True)
    return document


def stream(engine: FakeEngine, **more: Any) -> list[dict[str, Any]]:
    *chunks, done = events(client(engine).post(CHAT, json={**HELLO, "stream": True, **more}).text)
    assert done == "[DONE]"
    for chunk in chunks:
        TypeAdapter(ChatCompletionChunk).validate_python(chunk)
    return chunks


def test_sampling_reaches_the_engine() -> None:
    """Every sampling field reaches the engine unchanged."""
    engine = FakeEngine()
    fields: dict[str, Any] = {
        "temperature": 0.3, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 4, "repetition_penalty": 1.1,
        "presence_penalty": -1, "frequency_penalty": 2, "max_tokens": 9, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    complete(
        engine,
        **fields,
        stop=["a", "b"],
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        parallel_tool_calls=True,
    )
    assert engine.seen[0][1] == Sampling(
        max_tokens=9, temperature=0.3, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.1, presence_penalty=-1,
        frequency_penalty=2, seed=4, stop=("a", "b"), logprobs=2,
    )  # fmt: skip


@pytest.mark.parametrize("whole", [True, False])
def test_n_choices_have_indexes_seeds_and_one_usage(whole: bool) -> None:
    """Each of n choices has its index and its own seed; the prompt is counted once."""
    engine = FakeEngine(pause=True)
    if whole:
        document = complete(engine, n=3, seed=2**63 - 2)
        choices, usage = document["choices"], document["usage"]
        assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [
            (index, "Hello 世界") for index in range(3)
        ]
    else:
        *chunks, last = stream(engine, n=3, seed=2**63 - 2, stream_options={"include_usage": True})
        usage = last["usage"]
        texts, ends = ["", "", ""], [0, 0, 0]
        for chunk in chunks:
            [choice] = chunk["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
            ends[choice["index"]] += choice["finish_reason"] == "stop"
        assert (texts, ends) == (["Hello 世界"] * 3, [1, 1, 1])
        assert len({chunk["choices"][0]["index"] for chunk in chunks[3:6]}) == 3, "the streams run side by side"
    assert [sampling.seed for _, sampling, _ in engine.seen] == [2**63 - 2, 2**63 - 1, -(2**63)]
    details = {"reasoning_tokens": 0}
    assert usage == {
        "prompt_tokens": 7,
        "completion_tokens": 9,
        "total_tokens": 16,
        "completion_tokens_details": details,
    }


def test_failure_of_one_choice_cancels_all() -> None:
    """When one of n choices fails, the others are cancelled."""
    engine = FakeEngine(wait_at=2)
    failing = FakeEngine(fail_at=1)

    class FailingForOneSeed(FakeEngine):
        def stream(self, messages: Any, sampling: Sampling, **more: Any) -> Any:
            return (failing if sampling.seed == 2 else engine).stream(messages, sampling, **more)

    assert complete(FailingForOneSeed(), n=3, seed=1, status=500)["error"]["type"] == "server_error"
    assert engine.cancelled == 2


def test_cancellation_cancels_all_choices() -> None:
    """Cancelling the awaiting task frees every row of its request."""

    async def scenario() -> int:
        engine = FakeEngine(wait_at=2)
        task = asyncio.create_task(ChatService(engine, IDENTITY, settings()).complete({**HELLO, "n": 3}))
        for _ in range(3):
            await engine.started.get()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return engine.cancelled

    assert asyncio.run(scenario()) == 3


def test_every_engine_item_is_one_send() -> None:
    """The role is sent with the first text, and usage and [DONE] with the last event: fewer writes, no delay."""

    async def scenario() -> list[Message]:
        body = iter([{"type": "http.request", "body": json.dumps({**HELLO, "stream": True}).encode()}])

        async def receive() -> Message:
            for message in body:
                return message
            await asyncio.Event().wait()
            raise AssertionError

        return await raw(FakeEngine(), receive)

    [_start, *bodies] = asyncio.run(scenario())
    assert [message["body"].count(b"data: ") for message in bodies] == [2, 1, 1, 2, 0]


def test_too_many_choices_are_rejected() -> None:
    """The number of choices is limited."""
    assert complete(FakeEngine(), n=3, limits={"max_choices": 2}, status=400)["error"]["param"] == "n"


LOGPROBS = (TokenLogprob("é".encode()[:1], -0.5, ((b"a", -0.5), (b"b", float("-inf")))), TokenLogprob(b"x", -1.0))
TOKENS = [
    {
        "token": "\ufffd",
        "bytes": [0xC3],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "a", "bytes": [97], "logprob": -0.5},
            {"token": "b", "bytes": [98], "logprob": -9999.0},
        ],
    },
    {"token": "x", "bytes": [120], "logprob": -1.0, "top_logprobs": []},
]


def test_logprobs_have_openai_format() -> None:
    """Tokens, bytes and the most likely alternatives are in the response, and in a stream with their text."""
    engine = FakeEngine(("Hel", "", "lo"), logprobs=LOGPROBS)
    [choice] = complete(engine, logprobs=True)["choices"]
    assert choice["logprobs"]["content"] == TOKENS * 3
    with_tokens = [chunk["choices"][0] for chunk in stream(engine, logprobs=True)[1:-1]]
    assert [choice["logprobs"]["content"] for choice in with_tokens] == [TOKENS] * 3
    assert [choice["delta"] for choice in with_tokens] == [{"content": "Hel"}, {"content": ""}, {"content": "lo"}]
    assert engine.seen[0][1].logprobs == 0


def test_logprobs_of_held_text_are_sent_once() -> None:
    """Text that may begin a tag is held back; its log probabilities are sent at once and only once."""
    engine = FakeEngine(("<think>", "a</th", "ink>", "b", "c"), logprobs=LOGPROBS)
    chunks = stream(engine, logprobs=True)
    sent = [choice["logprobs"]["content"] for chunk in chunks if (choice := chunk["choices"][0])["logprobs"]]
    assert sent == [TOKENS] * 5
    mixed = stream(FakeEngine(("<think>a</think>b",), logprobs=LOGPROBS), logprobs=True)
    assert [chunk["choices"][0]["logprobs"] is None for chunk in mixed] == [True, False, True, True]


@pytest.mark.parametrize(
    ("given", "schema", "thinking"),
    [
        ({"response_format": {"type": "text"}}, None, None),
        ({"response_format": {"type": "json_object"}}, {"type": "object"}, None),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["é"]}}}},
            {"enum": ["é"]},
            None,
        ),
        (
            {"response_format": {"type": "json_object"}, "chat_template_kwargs": {"enable_thinking": True}},
            {"type": "object"},
            True,
        ),
    ],
)
def test_response_format_becomes_a_schema(given: Any, schema: Any, thinking: bool | None) -> None:
    """JSON formats reach the engine as a grammar, and leave thinking to the chat template by default."""
    engine = FakeEngine()
    complete(engine, **given)
    [(_, sampling, enabled)] = engine.seen
    assert (sampling.grammar, enabled) == (schema and Grammar.of_document(schema), thinking)


def test_reasoning_is_separate_from_content() -> None:
    """Reasoning and content are separate fields, also in a stream, and box tags are removed."""
    engine = FakeEngine(("\n<thi", "nk>I ", "see.", "</think>\n<|begin_of", "_box|>", "4", "2<|end_of_box|>"))
    [choice] = complete(engine)["choices"]
    assert choice["message"] == {"role": "assistant", "content": "42", "refusal": None, "reasoning_content": "I see."}
    assert choice["finish_reason"] == "stop"
    deltas = [chunk["choices"][0]["delta"] for chunk in stream(engine)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "I see."
    assert "".join(delta.get("content", "") for delta in deltas) == "42"
    off = complete(engine, chat_template_kwargs={"enable_thinking": False})["choices"][0]["message"]
    assert off["content"] == "\n<think>I see.</think>\n42"
    kept = complete(engine, limits={"boxes": True})["choices"][0]["message"]
    assert kept["content"] == "<|begin_of_box|>42<|end_of_box|>"


def test_tool_calls_are_parsed_from_the_text() -> None:
    """Tools reach the engine unchanged, and a call is returned with an id and JSON arguments."""
    engine = FakeEngine(CALL)
    [choice] = complete(engine, tools=[WEATHER], tool_choice="auto")["choices"]
    assert engine.tools == [[WEATHER]]
    [call] = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "weather", "arguments": '{"city": "Ulm"}'})
    assert call["id"].startswith("call_")
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Let me see.", "tool_calls")
    alone = complete(FakeEngine(CALL[1:] * 2), tools=[WEATHER])["choices"][0]["message"]
    assert alone["content"] is None
    assert len({call["id"] for call in alone["tool_calls"]}) == 2


def test_tool_calls_are_streamed_while_they_are_written() -> None:
    """Each call begins with its index, id and name; its arguments follow in pieces; the stream ends with tool_calls."""
    chunks = stream(FakeEngine(CALL + CALL[1:]), tools=[WEATHER])
    choices = [chunk["choices"][0] for chunk in chunks]
    pieces = [piece for choice in choices for piece in choice["delta"].get("tool_calls", [])]
    begins = [piece for piece in pieces if "id" in piece]
    assert [(piece["index"], piece["type"], piece["function"]["name"]) for piece in begins] == [
        (index, "function", "weather") for index in (0, 1)
    ]
    for index in (0, 1):
        written = [piece["function"]["arguments"] for piece in pieces if piece["index"] == index]
        assert len(written) > 1
        assert json.loads("".join(written)) == {"city": "Ulm"}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Let me see."
    assert choices[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("more", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_tools_calls_are_text(more: dict[str, Any]) -> None:
    """Without tools in the request, text that looks like a call stays text, and the prompt has no tools."""
    engine = FakeEngine(CALL)
    [choice] = complete(engine, **more)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("".join(CALL), "stop")
    assert engine.tools == [[]]


def test_messages_with_tool_calls_reach_the_engine() -> None:
    """Arguments of earlier calls are passed as objects, with reasoning and call ids."""
    engine = FakeEngine()
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    bare = {"function": {"name": "now", "arguments": ""}}
    messages = [
        *HELLO["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call, bare], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    ]
    complete(engine, messages=messages)
    assert engine.seen[0][0][1:] == [
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [
                {**call, "function": {"name": "weather", "arguments": {"city": "Ulm"}}},
                {"type": "function", "function": {"name": "now", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "sun", "tool_call_id": "c1"},
    ]


class RefusedFormat(Refused):
    """A response_format that the engine rejects."""

    param = "response_format"


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("error", "status", "param", "code"),
    [
        (Refused("no"), 400, "messages", None),
        (RefusedFormat("no"), 400, "response_format", None),
        (QueueTimeout("60 s"), 429, None, "queue_timeout"),
    ],
)
def test_engine_errors_have_their_status(
    streamed: bool, n: int, error: Exception, status: int, param: str | None, code: str | None
) -> None:
    """A rejected request names its field, and a queue timeout has Retry-After."""
    answer = client(FakeEngine(fail_at=0, error=error)).post(CHAT, json={**HELLO, "stream": streamed, "n": n})
    found = answer.json()["error"]
    assert (answer.status_code, found["param"], found["code"]) == (status, param, code)
    assert ("retry-after" in answer.headers) == (status == 429)


def test_batch_requests_do_not_count_against_the_queue() -> None:
    """A request of priority batch is answered while the queue is full, and reaches the engine with its priority."""

    async def scenario() -> None:
        engine = FakeEngine(wait_at=0)
        chat = ChatService(engine, IDENTITY, settings(max_queue=1))
        batch = [asyncio.create_task(chat.complete(HELLO, priority="batch")) for _ in range(3)]
        waiting = asyncio.create_task(chat.complete(HELLO))
        for _ in range(4):
            await engine.started.get()
        with pytest.raises(ApiError, match="1 requests are waiting"):
            await chat.complete(HELLO)
        engine.wait_at = None
        document = await chat.complete(HELLO, priority="batch")
        assert document["choices"][0]["message"]["content"] == "Hello 世界"
        assert engine.priorities == ["batch"] * 3 + ["interactive", "batch"]
        for task in (*batch, waiting):
            task.cancel()
        await asyncio.gather(*batch, waiting, return_exceptions=True)
        assert engine.cancelled == 4

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"\ud800": 1}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": "\ud800"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": float("nan")}}}},
        {"stream": True},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": 10**5000}}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": object()}}}]},
    ],
)
def test_documents_that_are_not_json_are_rejected(more: dict[str, Any]) -> None:
    """Python objects with lone surrogates, infinities or huge integers are 400s too."""
    with pytest.raises(ApiError) as caught:
        asyncio.run(ChatService(FakeEngine(), IDENTITY, settings()).complete({**HELLO, **more}))
    assert caught.value.status == 400


def test_openai_package_parses_the_responses() -> None:
    """The openai package parses calls, usage and log probabilities, streamed or not."""

    async def scenario() -> None:
        app = create_app(FakeEngine(CALL, logprobs=LOGPROBS), IDENTITY, settings(), serving=lambda: True)
        transport = httpx2.ASGITransport(app)
        async with openai.AsyncOpenAI(
            base_url="http://x/v1", api_key="-", http_client=httpx2.AsyncClient(transport=transport), max_retries=0
        ) as http:
            body: Any = {**HELLO, "model": "m", "tools": [WEATHER], "logprobs": True}
            response: Any = await http.chat.completions.create(**body)
            assert response.choices[0].message.tool_calls[0].function.name == "weather"
            assert response.choices[0].logprobs.content[0].top_logprobs[1].logprob == -9999.0
            async with http.chat.completions.stream(**body, stream_options={"include_usage": True}) as streamed:
                async for _ in streamed:
                    pass
                final: Any = await streamed.get_final_completion()
            assert final.choices[0].message.tool_calls[0].function.arguments == '{"city": "Ulm"}'
            assert final.choices[0].finish_reason == "tool_calls"
            assert final.usage is not None
            assert len(final.choices[0].logprobs.content) == 2 * len(CALL)

    asyncio.run(scenario())
