"""POST /v1/completions: the text of a prompt as it is, answered in the format of OpenAI's package."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI
from openai.types import Completion

from service.engine import Sampling, TokenLogprob
from tests.test_app import FakeEngine, client, events

URL = "/v1/completions"
PROMPT = "<|user|>\nhi<|assistant|>\n"


def complete(engine: FakeEngine, status: int = 200, **more: Any) -> Any:
    answer = client(engine).post(URL, json={"prompt": PROMPT, **more})
    assert answer.status_code == status, answer.text
    if status == 200:
        Completion.model_validate(answer.json(), strict=True)
    return answer.json()


def test_the_prompt_and_the_output_are_passed_on_as_they_are() -> None:
    """Control tokens are not escaped, tags of reasoning and calls are not parsed; 16 tokens are the default."""
    engine = FakeEngine(("<think>a</think>", "<tool_call>b"))
    [choice] = complete(engine, prompt=[PROMPT])["choices"]
    assert choice == {"index": 0, "text": "<think>a</think><tool_call>b", "logprobs": None, "finish_reason": "stop"}
    assert engine.seen == [(PROMPT, Sampling(max_tokens=16), False)]


def test_a_stream_adds_up_to_the_whole() -> None:
    """Of every choice; at the end come the token counts, if they are asked for, and [DONE]."""
    whole = complete(FakeEngine(), n=2)
    package = OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client(FakeEngine()))
    chunks = list(
        package.completions.create(model="glm", prompt=PROMPT, n=2, stream=True, stream_options={"include_usage": True})
    )
    for choice in whole["choices"]:
        mine = [one for chunk in chunks for one in chunk.choices if one.index == choice["index"]]
        assert "".join(one.text for one in mine) == choice["text"]
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice["finish_reason"]]
    assert chunks[-1].usage
    assert chunks[-1].usage.model_dump(exclude_unset=True) == whole["usage"]


def test_logprobs_have_the_old_format() -> None:
    """Four lists, with an entry for each token; in a stream those of the event's text."""
    tokens = (TokenLogprob(b"a", -0.5, ((b"a", -0.5), (b"b", -1.0))),)
    whole = complete(FakeEngine(("a", "a"), logprobs=tokens), logprobs=2)["choices"][0]["logprobs"]
    assert whole == {"tokens": ["a", "a"], "token_logprobs": [-0.5, -0.5], "text_offset": [0, 1],
                     "top_logprobs": [{"a": -0.5, "b": -1.0}] * 2}  # fmt: skip
    text = client(FakeEngine(("a", "a"), logprobs=tokens)).post(URL, json={"prompt": "x", "stream": True}).text
    *chunks, done = events(text)
    assert done == "[DONE]"
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [one["text_offset"] for one in found] == [[0], [1]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"), ({"prompt": ["a", "b"]}, "prompt"), ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"), ({"echo": True}, "echo"), ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"), ({"logprobs": 21}, "logprobs"), ({"n": 100}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": "x" * 500_000}, "prompt"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """With the field's name."""
    assert complete(FakeEngine(), 400, **fields)["error"]["param"] == param


def test_an_error_after_the_first_event_is_the_last_event() -> None:
    """Without [DONE]."""
    text = client(FakeEngine(fail_at=1)).post(URL, json={"prompt": "x", "stream": True}).text
    assert events(text)[-1]["error"]["type"] == "server_error"
