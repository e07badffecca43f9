"""The official OpenAI client against the whole server and a real model."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from PIL import Image, ImageDraw

from tests.box import Box

pytestmark = pytest.mark.model

MODEL = "glm-4.6v-flash"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def client(stocked_live: Box) -> Iterator[openai.OpenAI]:
    """The client with its defaults, but without retries, which would hide failures."""
    with openai.OpenAI(base_url=f"http://{stocked_live.listen}/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


def picture() -> str:
    """A red circle, as a data URL."""
    drawn = Image.new("RGB", (112, 112), "white")
    ImageDraw.Draw(drawn).ellipse((20, 20, 90, 90), fill="red")
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_chat(client: openai.OpenAI) -> None:
    """A conversation is answered with its usage and the version that answered."""
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Be short."},
            *HELLO,
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": [{"type": "text", "text": "What is water?"}]},
        ],
        max_completion_tokens=12,
        temperature=0,
    )
    answer = raw.parse()
    assert raw.headers["x-model-version"] == "1.0.0"
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert [(choice.index, choice.finish_reason) for choice in answer.choices] == [(0, "length")]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_stream_equals_the_complete_response(client: openai.OpenAI) -> None:
    """A stream has the same text as the response that is not streamed; include_usage adds the usage."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": HELLO,
        "max_tokens": 24,
        "temperature": 0,
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
    }
    whole = client.chat.completions.create(**body)
    with client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}) as stream:
        chunks: list[ChatCompletionChunk] = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 12
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_image_reaches_the_model(client: openai.OpenAI) -> None:
    """An image adds its tokens to the prompt and changes the answer."""

    def complete(content: Any) -> Any:
        return client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": content}], max_tokens=16, temperature=0
        )

    question = {"type": "text", "text": "What is this?"}
    image = {"type": "image_url", "image_url": {"url": picture(), "detail": "low"}}
    with_it, without = complete([image, question]), complete([question])
    assert with_it.usage.prompt_tokens == without.usage.prompt_tokens + 16 + 2  # (112 / 28) squared, and two marks
    assert with_it.choices[0].message != without.choices[0].message


def test_tools_reach_the_prompt(client: openai.OpenAI) -> None:
    """Tools and tool results lengthen the prompt; a call that is demanded comes, with arguments of the schema."""
    tool: Any = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    called: list[Any] = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    plain = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, temperature=0)
    offered = client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[tool], tool_choice="auto", max_tokens=8, temperature=0
    )
    after = client.chat.completions.create(model=MODEL, messages=called, tools=[tool], max_tokens=8, temperature=0)
    assert plain.usage is not None
    assert offered.usage is not None
    assert after.usage is not None
    assert plain.usage.prompt_tokens < offered.usage.prompt_tokens < after.usage.prompt_tokens
    for answer in (offered, after):  # a random model makes no call
        assert answer.choices[0].finish_reason == "length"
        assert answer.choices[0].message.tool_calls is None
    tool["function"]["parameters"]["properties"]["city"] = {"enum": ["Bonn", "Ulm"]}
    forced = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=300,
        reasoning_effort="none",  # which a random model would not end
    )
    [call] = forced.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments)["city"] in ("Bonn", "Ulm")
    assert forced.choices[0].finish_reason == "tool_calls"


def test_several_choices(client: openai.OpenAI) -> None:
    """`n` choices are returned with their indexes, and repeat with the same seed, streamed or not."""

    def complete(**more: Any) -> Any:
        return client.chat.completions.create(
            model=MODEL, messages=HELLO, n=3, seed=7, temperature=1.5, top_p=1, max_tokens=12, **more
        )

    def text_of(message: Any) -> str:
        return (getattr(message, "reasoning_content", None) or "") + (message.content or "")

    first, again = complete(), complete()
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len({text_of(choice.message) for choice in first.choices}) == 3
    assert [text_of(choice.message) for choice in again.choices] == [
        text_of(choice.message) for choice in first.choices
    ]
    assert first.usage.completion_tokens == 36
    texts = ["", "", ""]
    for chunk in complete(stream=True):
        for choice in chunk.choices:
            texts[choice.index] += text_of(choice.delta)
    assert texts == [text_of(choice.message) for choice in first.choices]


def test_log_probabilities(client: openai.OpenAI) -> None:
    """Every token has its log probability and the most likely alternatives, the first of which is chosen."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    reported = answer.choices[0].logprobs
    assert reported is not None
    assert reported.content is not None
    assert len(reported.content) == 6
    assert (
        "".join(token.token for token in reported.content).strip() == (answer.choices[0].message.content or "").strip()
    )
    for token in reported.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(one.logprob for one in token.top_logprobs) <= 0
        assert token.top_logprobs[0].token == token.token


def test_json_mode(client: openai.OpenAI) -> None:
    """With response_format the content is JSON, and with a schema it conforms to the schema."""
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "round": {"type": "boolean"}},
        "required": ["colour", "round"],
        "additionalProperties": False,
    }
    bound = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        temperature=0,
        max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}},
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    thing = json.loads(bound.choices[0].message.content or "")
    assert thing.keys() == {"colour", "round"}
    assert thing["colour"] in ("red", "blue")
    assert thing["round"] in (True, False)
    assert bound.choices[0].finish_reason == "stop"
    free = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        temperature=0,
        max_tokens=40,
        response_format={"type": "json_object"},
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    text = free.choices[0].message.content or ""
    assert text.lstrip().startswith("{")  # a random model may reach the token limit first
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_models(client: openai.OpenAI) -> None:
    """The served model is listed and found by name; any other name is a 404."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_errors(client: openai.OpenAI) -> None:
    """An invalid request raises the client's own exception, which names the field."""
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=9)
    assert raised.value.param == "temperature"


def test_files(client: openai.OpenAI) -> None:
    """A file is uploaded, listed, downloaded unchanged, and deleted."""
    content = b'{"a": 1}\n'
    stored = client.files.create(file=("work.jsonl", content), purpose="batch")
    assert (stored.filename, stored.bytes, stored.purpose) == ("work.jsonl", len(content), "batch")
    assert stored.id in [one.id for one in client.files.list(purpose="batch")]
    assert client.files.retrieve(stored.id).id == stored.id
    assert client.files.content(stored.id).read() == content
    assert client.files.delete(stored.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(stored.id)


def test_batches(client: openai.OpenAI) -> None:
    """A batch has a response for each valid line and an error for each invalid one."""

    def line(name: str, **fields: Any) -> str:
        body = {"model": MODEL, "messages": HELLO, "max_tokens": 8, "temperature": 0, **fields}
        return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})

    lines = [*(line(f"good-{number}") for number in range(5)), line("bad", temperature=9)]
    file = client.files.create(file=("work.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"for": "the test"},
    )
    deadline = time.monotonic() + 60
    while batch.status not in ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch
    assert batch.id in [one.id for one in client.batches.list()]
    assert batch.metadata == {"for": "the test"}
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed, batch.request_counts.total) == (5, 1, 6)

    assert batch.output_file_id
    done = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    alone = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, temperature=0)
    assert sorted(one["custom_id"] for one in done) == [f"good-{number}" for number in range(5)]
    for one in done:
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        message = openai.types.chat.ChatCompletion.model_validate(one["response"]["body"]).choices[0].message
        assert message == alone.choices[0].message

    assert batch.error_file_id
    [failed] = [json.loads(text) for text in client.files.content(batch.error_file_id).text.splitlines()]
    assert failed["custom_id"] == "bad"
    assert "temperature" in json.dumps(failed)


def test_batch_is_cancelled(client: openai.OpenAI) -> None:
    """A running batch that is cancelled ends as cancelled."""
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 400}
    lines = [
        json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body})
        for number in range(200)
    ]
    file = client.files.create(file=("work.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    deadline = time.monotonic() + 30
    while (batch := client.batches.retrieve(batch.id)).status != "cancelled":
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
