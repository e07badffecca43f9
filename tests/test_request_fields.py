"""No field of a request is ignored in silence: it is obeyed, refused by its name, or cannot change the answer."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import core_schema

from service.chat import messages, request_model, tool_definitions, validation_messages
from service.chat.errors import ApiError
from service.chat.known_fields import DroppedFields, UnsupportedFields
from service.chat.request import ChatRequest, parse_request
from service.chat.request_model import Neutral, RequestModel
from service.chat.sampling_fields import StreamOptions
from service.engine import Grammar
from tests.test_app import CHAT, HELLO, FakeEngine, client, picture

TOOL = {"type": "function", "function": {"name": "now"}}
PLAIN = parse_request(json.dumps(HELLO).encode())


def parse(**more: Any) -> ChatRequest:
    return parse_request(json.dumps({**HELLO, **more}).encode())


def refusal(**more: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**more)
    assert caught.value.status == 400
    return caught.value


def neutral(field: str) -> list[Any]:
    """The values that a field which is not supported may have."""
    [annotation] = [one for one in UnsupportedFields.model_fields[field].metadata if isinstance(one, Neutral)]
    return [*annotation.values, None]


@pytest.mark.parametrize("field", DroppedFields.model_fields)
@pytest.mark.parametrize("value", [{"a": "b"}, "x", True, 3, None])
def test_what_cannot_change_the_answer_is_dropped(field: str, value: Any) -> None:
    """The request is the one without the field."""
    assert parse(**{field: value}) == PLAIN


@pytest.mark.parametrize("field", UnsupportedFields.model_fields)
def test_what_is_not_supported_is_refused_by_name_unless_it_changes_nothing(field: str) -> None:
    """Values of the same and of other types are told apart, as 1 and true are."""
    for value in neutral(field):
        assert parse(**{field: value}) == PLAIN
    for value in ("x", 7, 0.5, ["x"], {"x": 1}, True, False, 0, 1):
        if not any(type(value) is type(one) and value == one for one in neutral(field)):
            error = refusal(**{field: value})
            assert (error.param, str(error)) == (field, f"{field}: is not supported; remove it")


PLACES: dict[str, tuple[type[RequestModel], Any]] = {
    "": (ChatRequest, lambda extra: {**HELLO, **extra}),
    "stream_options.": (StreamOptions, lambda extra: {**HELLO, "stream": True, "stream_options": extra}),
    "messages[0].": (messages.Message, lambda extra: {"messages": [{"role": "user", "content": "x", **extra}]}),
    "messages[0].content[0].": (
        messages.TextPart,
        lambda extra: {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", **extra}]}]},
    ),
    "messages[0].content[0].image_url.": (
        messages.ImageURL,
        lambda extra: {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,", **extra}}]}]
        },
    ),
    "tools[0].": (tool_definitions.Tool, lambda extra: {**HELLO, "tools": [{**TOOL, **extra}]}),
    "tools[0].function.": (
        tool_definitions.Function,
        lambda extra: {**HELLO, "tools": [{"type": "function", "function": {"name": "now", **extra}}]},
    ),
    "tool_choice.": (
        tool_definitions.NamedTool,
        lambda extra: {**HELLO, "tools": [TOOL], "tool_choice": {**TOOL, **extra}},
    ),
    "response_format.": (RequestModel, lambda extra: {**HELLO, "response_format": {"type": "text", **extra}}),
    "chat_template_kwargs.": (RequestModel, lambda extra: {**HELLO, "chat_template_kwargs": extra}),
}


@pytest.mark.parametrize("place", PLACES)
@given(st.text(min_size=1, max_size=80), st.none() | st.booleans() | st.integers(0, 1) | st.text(max_size=3))
@settings(max_examples=30, deadline=None)
def test_an_unknown_name_is_refused_wherever_it_stands(place: str, name: str, value: Any) -> None:
    """The error names it with its path; null asks for nothing and is taken."""
    model, document = PLACES[place]
    names = {field.alias or key for key, field in model.model_fields.items()} | {"type", "enable_thinking"}
    if name in names or any("\ud800" <= character <= "\udfff" for character in name):
        return
    body = json.dumps(document({name: value})).encode()
    if value is None:
        parse_request(body)
        return
    with pytest.raises(ApiError, match="is not a known field") as caught:
        parse_request(body)
    assert caught.value.param == f"{place}{name[: request_model.LONGEST_NAME]}"


@pytest.mark.parametrize(
    ("name", "meant"), [("max_token", "max_tokens"), ("temperatur", "temperature"), ("guided_choices", "guided_choice")]
)
def test_the_nearest_name_is_proposed(name: str, meant: str) -> None:
    """A misspelt field is told from one that nobody has."""
    assert f"did you mean {meant}?" in str(refusal(**{name: 1}))
    assert "remove it" in str(refusal(zzzz=1))


CLIENTS: dict[str, dict[str, Any]] = {
    "openai agents": {
        "model": "m", "tools": [{"type": "function", "function": {"name": "now", "description": "", "strict": True,
        "parameters": {"type": "object", "properties": {}, "required": [], "additionalProperties": False}}}],
        "parallel_tool_calls": False, "store": False, "metadata": {"a": "b"}, "stream": True,
        "stream_options": {"include_usage": True}, "tool_choice": "auto", "reasoning_effort": None, "verbosity": None,
        "prompt_cache_retention": "24h", "top_logprobs": None, "response_format": None,
    },
    "langchain": {"model": "m", "n": 1, "stream": False, "user": "u", "temperature": 0.7, "max_completion_tokens": 9,
                  "service_tier": "auto", "stop": None, "seed": None, "logit_bias": None, "frequency_penalty": None},
    "litellm": {"model": "m", "user": "u", "function_call": None, "functions": [], "modalities": None,
                "prediction": None,
                "audio": None, "safety_identifier": "s", "prompt_cache_key": "k", "web_search_options": None},
    "vllm": {"model": "m", "best_of": 1, "use_beam_search": False, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
             "length_penalty": 1.0, "stop_token_ids": [], "ignore_eos": False, "min_tokens": 0, "echo": False,
             "skip_special_tokens": True, "spaces_between_special_tokens": True, "add_generation_prompt": True,
             "continue_final_message": False, "add_special_tokens": False, "priority": 0, "request_id": "r",
             "cache_salt": "c", "top_logprobs": 0, "logprobs": False, "guided_json": None, "bad_words": []},
}  # fmt: skip
HISTORY = [
    {"role": "system", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    {"role": "user", "name": "ann", "content": [{"type": "text", "text": "x", "prompt_cache_breakpoint": {"a": 1}}]},
    {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "function_call": None,
     "reasoning": "hm", "tool_calls": [{"index": 0, "id": "c", "type": "function",
                                        "function": {"name": "now", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c", "name": "now", "content": "4"},
]  # fmt: skip


@pytest.mark.parametrize("name", CLIENTS)
def test_what_usual_clients_send_is_taken(name: str) -> None:
    """With messages as they come back from a client: names and reasoning reach the chat template."""
    engine = FakeEngine()
    answer = client(engine).post(CHAT, json={"messages": HISTORY, **CLIENTS[name]})
    assert answer.status_code == 200, answer.text
    [(seen, _, _)] = engine.seen
    assert [message.get("name") for message in seen] == [None, "ann", None, "now"]
    assert seen[2]["reasoning_content"] == "hm"
    assert all("index" not in call for call in seen[2]["tool_calls"])


def test_of_a_large_image_the_model_sees_as_much_as_is_asked_for() -> None:
    """With `low` 512 pixels a side, else all of it."""
    engine = FakeEngine()
    for detail in ("low", "high", "auto", None):
        image = {"type": "image_url", "image_url": {"url": picture(1024, 300), "detail": detail}}
        assert client(engine).post(CHAT, json={"messages": [{"role": "user", "content": [image]}]}).status_code == 200
    sizes = [messages[0]["content"][0]["image"].size for messages, _, _ in engine.seen]
    assert sizes == [(512, 150), (1024, 300), (1024, 300), (1024, 300)]


@pytest.mark.parametrize("field", ["prefix", "partial", "audio", "function_call", "refusal"])
def test_a_field_of_a_message_that_is_not_supported_is_refused(field: str) -> None:
    """The path names it."""
    with pytest.raises(ApiError, match="is not supported") as caught:
        parse_request(json.dumps({"messages": [{"role": "assistant", "content": "x", field: "y"}]}).encode())
    assert caught.value.param == f"messages[0].{field}"


SWITCHES: list[tuple[str, Any, bool]] = [
    ("reasoning_effort", "none", False), ("reasoning_effort", "minimal", False), ("reasoning_effort", "low", True),
    ("reasoning_effort", "medium", True), ("reasoning_effort", "high", True), ("thinking", {"type": "enabled"}, True),
    ("thinking", {"type": "disabled"}, False), ("include_reasoning", False, False), ("include_reasoning", True, True),
    ("chat_template_kwargs", {"enable_thinking": True}, True),
    ("chat_template_kwargs", {"enable_thinking": False}, False),
]  # fmt: skip


@given(st.lists(st.sampled_from(SWITCHES), unique_by=lambda switch: switch[0]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_four_fields_turn_reasoning_on_or_off(switches: list[tuple[str, Any, bool]], formatted: bool) -> None:
    """They agree, or the request is refused with the names of two that do not; a JSON format decides nothing."""
    fields = {name: value for name, value, _ in switches}
    if formatted:
        fields["response_format"] = {"type": "json_object"}
    wishes = {wish for _, _, wish in switches}
    if len(wishes) < 2:
        assert parse(**fields).thinking is next(iter(wishes), None)
        return
    error = refusal(**fields)
    assert error.param
    assert error.param.partition(".")[0] in {name for name, _, wish in switches if not wish}
    assert any(name in str(error) for name, _, wish in switches if wish)


FORMATS: dict[str, tuple[dict[str, Any], str]] = {
    "response_format": ({"response_format": {"type": "json_object"}}, "response_format"),
    "guided_json": ({"guided_json": {"type": "object"}}, "guided_json"),
    "guided_json as text": ({"guided_json": '{"type": "object"}'}, "guided_json"),
    "guided_regex": ({"guided_regex": "a+"}, "guided_regex"),
    "guided_choice": ({"guided_choice": ["a", "b"]}, "guided_choice"),
    "json": ({"structured_outputs": {"json": {"type": "object"}}}, "structured_outputs.json"),
    "json_object": ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object"),
    "regex": ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex"),
    "choice": ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs.choice"),
}


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_one_format_is_obeyed_and_two_are_refused(first: str, second: str) -> None:
    """The same schema gives the same grammar under every name; an error has the names of both fields."""
    (one, field), (other, other_field) = FORMATS[first], FORMATS[second]
    if first == second:
        grammar = parse(**one).grammar
        assert grammar
        assert grammar.param == field
        if grammar.kind == "JSON schema":
            assert grammar.text == Grammar.of_document({"type": "object"}).text
    elif one.keys().isdisjoint(other):
        error = refusal(**one, **other)
        assert "both ask for a format" in str(error)
        assert {field, other_field} <= set(str(error).replace(":", "").replace(";", "").split())
        assert error.param in (field, other_field)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": [1]}, "guided_json"),
        ({"guided_json": {"not": {}}}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "a\\"}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice[0]"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"min_tokens": 1, "guided_choice": ["a"]}, "min_tokens"),
        ({"ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"chat_template_kwargs": {"add_vision_id": True}}, "chat_template_kwargs.add_vision_id"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters":
          {"properties": {"a": {"type": "array", "contains": {}}}}}}]}, "tools"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_refused_with_its_path(fields: dict[str, Any], param: str) -> None:
    """In our own words."""
    error = refusal(**fields)
    assert error.param == param
    assert "pydantic" not in str(error)
    assert "Input" not in str(error)


def test_fields_of_the_output_reach_the_engine() -> None:
    """With ids as numbers."""
    engine = FakeEngine()
    body = {**HELLO, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [7], "logit_bias": {"3": -1.5, "4": 100}}
    assert client(engine).post(CHAT, json=body).status_code == 200
    [(_, sampling, _)] = engine.seen
    assert (sampling.min_tokens, sampling.ignore_eos, sampling.stop_token_ids) == (2, True, (7,))
    assert sampling.logit_bias == ((3, -1.5), (4, 100.0))


KEYS = st.sampled_from(["type", "role", "content", "url", "name"])
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=4,
)
NAMES = sorted(field.alias or name for name, field in ChatRequest.model_fields.items())


@given(st.sampled_from(NAMES), JUNK)
@settings(max_examples=400, deadline=None)
def test_no_message_is_in_the_voice_of_a_library(name: str, value: Any) -> None:
    """Any value of any field is taken or refused in our words, and the parameter begins with the field's name."""
    found: list[ApiError] = []
    try:
        parse(**{name: value})
    except ApiError as error:
        found.append(error)
    for one in found:
        _assert_own_words(one)


def _assert_own_words(error: ApiError) -> None:
    assert error.param
    for voice in ("Input", "Field required", "after validation", "should", "dictionary", "instance of", "Error"):
        assert voice not in str(error), str(error)


def test_every_word_for_an_error_is_one_of_pydantic_s_types() -> None:
    """A type that is renamed there would bring its voice back."""
    assert set(validation_messages._WORDS) <= set(get_args(core_schema.ErrorType))
