"""The official OpenAI client against the whole server and a real model, with both engines."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from PIL import Image, ImageDraw

from tests.box import Box, empty_host, wait_for
from tests.vllm_fixtures import NEEDS_VLLM, START, VLLM, add_release, configure, make_checkpoint

pytestmark = pytest.mark.model

MODEL = "glm-4.6v-flash"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
NO_REASONING: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module", params=["native", pytest.param("vllm", marks=[*NEEDS_VLLM, pytest.mark.alone])])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A host on which 1.0.0 is live, with each engine; the tests change nothing."""
    if request.param == "native":
        yield request.getfixturevalue("stocked_live")
        return
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("vllm") / "checkpoint", seed=1)
    with empty_host("model") as box:
        configure(box)
        add_release(box, "1.0.0", checkpoint, VLLM)
        box.glmctl("deploy", "1.0.0", timeout=START)
        yield box


@pytest.fixture(scope="module")
def client(served: Box) -> Iterator[openai.OpenAI]:
    """The client with its defaults, but without retries, which would hide failures."""
    with openai.OpenAI(base_url=f"http://{served.listen}/v1", api_key="any", max_retries=0, timeout=60) as made:
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
        "extra_body": NO_REASONING,
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
        extra_body=NO_REASONING,
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
        extra_body=NO_REASONING,
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
        extra_body=NO_REASONING,
    )
    text = free.choices[0].message.content or ""
    assert text.lstrip().startswith("{")  # a random model may reach the token limit first
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def greedy(client: openai.OpenAI, content: Any = "Hello", **more: Any) -> Any:
    """Return a choice, without reasoning."""
    body = {"max_tokens": 24, "extra_body": NO_REASONING | more.pop("extra_body", {}), **more}
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], temperature=0, **body
    )
    return answer.choices[0]


def tokens(client: openai.OpenAI, **more: Any) -> list[str]:
    """Return the tokens of an answer."""
    return [one.token for one in greedy(client, logprobs=True, **more).logprobs.content]


@pytest.mark.parametrize("cut", [3, 12])
def test_a_stop_string_ends_the_answer(client: openai.OpenAI, cut: int) -> None:
    """Before it, wherever in a token it begins, streamed or not."""
    whole = greedy(client).message.content
    stop = whole[cut : cut + 7]
    ended = greedy(client, stop=["never", stop], max_tokens=200)
    assert (ended.message.content, ended.finish_reason) == (whole[: whole.index(stop)], "stop")
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=0, stop=stop, stream=True, max_tokens=200, extra_body=NO_REASONING
    ) as stream:
        choices = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == ended.message.content
    assert choices[-1].finish_reason == "stop"


def test_a_stop_string_is_ignored_before_min_tokens(client: openai.OpenAI) -> None:
    """A field that is not OpenAI's, which both engines take."""
    whole = greedy(client).message.content
    later = greedy(client, stop=[whole[3:6]], extra_body={"min_tokens": 12})
    assert len(later.message.content) > 6


def test_the_bias_of_a_token(client: openai.OpenAI) -> None:
    """One that is likely enough is always chosen, and one that is forbidden never."""
    assert len(set(tokens(client, logit_bias={"700": 100}, max_tokens=6))) == 1
    first = tokens(client, max_tokens=1)
    assert tokens(client, logit_bias={str(700): 100}, max_tokens=1) != first


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty", "repetition_penalty"])
def test_penalties_prevent_repetition(client: openai.OpenAI, penalty: str) -> None:
    """A token that is likelier than all others is repeated only without a penalty."""
    likely: dict[str, Any] = {"logit_bias": {"700": 1.5}, "max_tokens": 40}
    plain = tokens(client, **likely)
    repeated = max(plain.count(token) for token in plain)
    penalised = tokens(client, **likely, extra_body={penalty: 2.0})
    assert max(penalised.count(token) for token in penalised) < repeated


def test_seeds(client: openai.OpenAI) -> None:
    """An answer is repeated by its seed, beside other requests too."""

    def sampled(seed: int) -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=HELLO, seed=seed, temperature=1.5, top_p=1, max_tokens=12, extra_body=NO_REASONING
        )
        return answer.choices[0].message.content or ""

    first = [sampled(seed) for seed in range(3)]
    assert len(set(first)) == 3
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(sampled, range(3))) == first


def test_the_tokens_of_pictures_are_in_the_usage(client: openai.OpenAI) -> None:
    """Of each by its size, in the place where it stands."""
    image = {"type": "image_url", "image_url": {"url": picture()}}

    def prompt_tokens(content: Any) -> int:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": content}], max_tokens=1
        )
        assert answer.usage
        return answer.usage.prompt_tokens

    text = {"type": "text", "text": "and"}
    none, one, two = (prompt_tokens([text, *[image] * count]) for count in range(3))
    assert two - one == one - none == 16 + 2


def test_a_choice_of_texts_and_a_regular_expression(client: openai.OpenAI) -> None:
    """Fields that are not OpenAI's, which both engines take."""
    chosen = greedy(client, extra_body={"guided_choice": ["north", "south"]})
    assert (chosen.message.content in {"north", "south"}, chosen.finish_reason) == (True, "stop")
    assert re.fullmatch(
        "[a-c]{3}-[0-9]{2}", greedy(client, extra_body={"guided_regex": "[a-c]{3}-[0-9]{2}"}).message.content
    )


def test_a_function_by_name(client: openai.OpenAI) -> None:
    """It is called, streamed or not, and no other."""
    tools: Any = [
        {"type": "function", "function": {"name": name, "parameters": {"properties": {"a": {"type": "boolean"}}}}}
        for name in ("one", "two")
    ]
    named: Any = {"type": "function", "function": {"name": "two"}}
    choice = greedy(client, tools=tools, tool_choice=named, max_tokens=200)
    assert [call.function.name for call in choice.message.tool_calls] == ["two"]
    assert isinstance(json.loads(choice.message.tool_calls[0].function.arguments), dict)


def test_a_prompt_that_is_too_long(client: openai.OpenAI) -> None:
    """It is refused with both numbers, and at once; an answer fills what is left of the context."""
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is \d+ tokens") as raised:
        greedy(client, "day old " * 40_000)
    assert raised.value.code == "context_length_exceeded"


def test_a_client_that_disconnects_frees_its_row(served: Box, client: openai.OpenAI) -> None:
    """The engine computes no more of its answer."""

    def running() -> float:
        lines = served.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("glm_engine_running{"))

    stream = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=7000, stream=True)
    next(iter(stream))
    wait_for(lambda: running() == 1, what="the request")
    stream.close()
    wait_for(lambda: running() == 0, 10, what="the end of the request")


def test_the_other_formats(client: openai.OpenAI) -> None:
    """Completions take a prompt as it is, responses a conversation; both have their usage."""
    completion = client.completions.create(model=MODEL, prompt="Hello", max_tokens=6, temperature=0, logprobs=2)
    assert completion.usage
    assert completion.usage.completion_tokens == 6
    reported = completion.choices[0].logprobs
    assert reported
    assert "".join(reported.tokens or []) == completion.choices[0].text
    response = client.responses.create(model=MODEL, input="Hello", max_output_tokens=16, temperature=0)
    assert response.usage
    assert response.usage.output_tokens == 16
    assert response.status == "incomplete"


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
