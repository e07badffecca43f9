"""Outputs of a grammar for calls, whatever the model likes, are calls that conform to their functions' schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import llguidance
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from service.chat.json_schema import UnsupportedSchema
from service.chat.output_parser import OutputParser
from service.chat.request import ChatRequest
from service.chat.tool_calls import ToolCallParser, joined
from service.engine import Grammar
from service.engine.grammar import Grammars

LONGEST = 2000  # tokens
END = ("<|user|>",)


class Writer:
    """Writes outputs of a grammar at random, as a model without any sense would."""

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        end = self._tokenizer.convert_tokens_to_ids("<|user|>")
        self._compiler = llguidance.LLTokenizer(
            self._tokenizer.backend_tokenizer.to_str(), n_vocab=len(self._tokenizer), eos_token=[end]
        )
        names = ("</arg_key>", "</arg_value>", "</tool_call>", '"', "}", "]", "<|user|>")
        self._ends = self._tokenizer.convert_tokens_to_ids(names)

    def write(self, grammar: Grammar, seed: int) -> str:
        """Return one output."""
        matcher = llguidance.LLMatcher(self._compiler, llguidance.LLMatcher.grammar_from_lark(grammar.text))
        assert not matcher.is_error(), matcher.get_error()
        dice, tokens = random.Random(seed), []
        while not matcher.is_stopped():
            mask = int.from_bytes(matcher.compute_bitmask(), "little")
            allowed = [token for token in range(len(self._tokenizer)) if mask >> token & 1]
            ends = [token for token in self._ends if token in allowed]
            tokens.append(dice.choice(ends if ends and dice.random() < 0.3 else allowed))
            matcher.consume_token(tokens[-1])
            assert len(tokens) < LONGEST
        return str(self._tokenizer.decode(tokens[:-1] if tokens[-1] == self._ends[-1] else tokens))


@pytest.fixture(scope="module")
def writer(checkpoints: dict[str, Path]) -> Writer:
    return Writer(checkpoints["1.0.0"])


@pytest.fixture(scope="module")
def reasoner(checkpoints: dict[str, Path]) -> Iterator[Grammars]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["1.0.0"])
    end = frozenset(tokenizer.convert_tokens_to_ids(list(END)))
    found = Grammars(tokenizer, len(tokenizer), end, max_schema=1 << 16)
    yield found
    found.close()


PLAIN = st.sampled_from(
    [{"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": ["string", "null"]},
     {"enum": ["a b", 1, None]}, {"const": "x"}, {"enum": ["north", "south"]}, {"$ref": "#/$defs/place"}, {},
     {"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"type": "array", "items": {"$ref": "#/$defs/place"}},
     {"type": "array", "items": {"type": "integer"}, "maxItems": 3, "uniqueItems": True},
     {"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"type": "integer", "format": "int32"}]
)  # fmt: skip
PLACE = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5, "title": "Name"}, "kind": {"enum": ["city", "lake"]}},
    "required": ["name"],
    "additionalProperties": False,
}


@st.composite
def functions(draw: st.DrawFn) -> dict[str, Any]:
    """The definition of a function with up to four arguments."""
    properties = draw(st.dictionaries(st.sampled_from(["a", "b-c", "Ö", 'q"']), PLAIN, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    parameters = {"type": "object", "properties": properties, "required": required, "$defs": {"place": PLACE}}
    return {"name": draw(st.sampled_from(["f", "get.weather", "now_-1"])), "parameters": parameters}


def request(tools: list[Any], **more: Any) -> ChatRequest:
    document = {"messages": [{"role": "user", "content": "x"}], "tools": tools, **more}
    return ChatRequest.model_validate(document)


def parsed(text: str, tools: list[Any]) -> tuple[str, list[Any]]:
    parser = ToolCallParser(tools)
    rest, pieces = parser.feed(text)
    more, last = parser.flush()
    return rest + more, [(call.name, json.loads(call.arguments)) for call in joined([*pieces, *last])]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(functions(), min_size=1, max_size=3, unique_by=lambda one: str(one["name"])), st.integers(0, 99))
def test_a_demanded_call_conforms_to_its_schema(writer: Writer, found: list[Any], seed: int) -> None:
    """All of the output is calls; each names a function, and its arguments are valid."""
    tools = [{"type": "function", "function": function} for function in found]
    grammar = request(tools, tool_choice="required").grammar
    assert grammar
    text, calls = parsed(writer.write(grammar, seed), tools)
    assert text.strip() == ""
    assert calls
    for name, arguments in calls:
        [function] = [one for one in found if one["name"] == name]
        jsonschema.validate(arguments, _loosened(function["parameters"]))


def _loosened(parameters: dict[str, Any]) -> dict[str, Any]:
    """Without what the grammar does not hold: that items are unique, and that one schema alone matches."""
    return json.loads(json.dumps(parameters).replace("uniqueItems", "x").replace("oneOf", "anyOf"))  # type: ignore[no-any-return]


TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": {"a": {"type": "integer"}}}}}
    for name in ("one", "two")
]


def test_a_named_function_is_called_once(writer: Writer) -> None:
    """And no other one."""
    named = request(TOOLS, tool_choice={"type": "function", "function": {"name": "two"}}).grammar
    single = request(TOOLS, tool_choice="required", parallel_tool_calls=False).grammar
    many = request(TOOLS, tool_choice="required").grammar
    assert named
    assert single
    assert many
    assert {tuple(name for name, _ in parsed(writer.write(named, seed), TOOLS)[1]) for seed in range(20)} == {("two",)}
    assert {len(parsed(writer.write(single, seed), TOOLS)[1]) for seed in range(20)} == {1}
    assert max(len(parsed(writer.write(many, seed), TOOLS)[1]) for seed in range(20)) > 1


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(functions(), min_size=1, max_size=2, unique_by=lambda one: str(one["name"])), st.integers(0, 99))
def test_a_demanded_call_comes_also_after_reasoning(reasoner: Grammars, found: list[Any], seed: int) -> None:
    """Whether the model reasons or not, begins with a line end, or tries to end its output within its reasoning."""
    tools = [{"type": "function", "function": function} for function in found]
    grammar = request(tools, tool_choice="required").grammar
    assert grammar
    tokenizer, dice = reasoner._tokenizer, random.Random(seed)
    is_open = dice.random() < 0.3
    constraint = reasoner.compile(grammar, thinking=True, is_open=is_open)
    tokens: list[int] = []
    likely = tokenizer.convert_tokens_to_ids(
        ["<think>", "</think>", "\u010a", "</arg_value>", "</tool_call>", '"', "}", "]", *END]
    )
    end = tokenizer.convert_tokens_to_ids(list(END))
    while not constraint.complete and not set(tokens[-1:]) & set(end):
        allowed = constraint.allowed(len(tokenizer)).nonzero()[:, 0].tolist()
        tokens.append(dice.choice([one for one in likely if one in allowed and dice.random() < 0.7] or allowed))
        constraint.advance(tokens[-1])
        assert len(tokens) < LONGEST
    text = "<think>" * is_open + tokenizer.decode(tokens[:-1] if tokens[-1] in end else tokens)
    parsed = OutputParser(thinking=True, boxes=False, tools=tools).parse(text)
    assert parsed.content.strip() == ""
    assert parsed.calls


def test_a_call_or_a_document(writer: Writer) -> None:
    """With a JSON format beside tools the output is one of both."""
    schema = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}
    form = {"type": "json_schema", "json_schema": {"schema": {**schema, "additionalProperties": False}}}
    grammar = request(TOOLS, response_format=form).grammar
    assert grammar
    kinds = set()
    for seed in range(30):
        text, calls = parsed(writer.write(grammar, seed), TOOLS)
        kinds.add(bool(calls))
        if not calls:
            jsonschema.validate(json.loads(text), schema)
    assert kinds == {True, False}


@pytest.mark.parametrize("keyword", ["not", "if", "contains", "dependentRequired", "unevaluatedProperties"])
def test_what_cannot_be_held_is_refused_by_name(keyword: str) -> None:
    """Also deep inside, but not where it is a name."""
    schema: dict[str, Any] = {"properties": {keyword: {"items": {"anyOf": [{keyword: {}}]}}}}
    with pytest.raises(ValueError, match=f"the keyword {keyword} is not supported"):
        request([], response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    fine = {"properties": {keyword: {"type": "string"}}, "default": {keyword: 1}}
    assert request([], response_format={"type": "json_schema", "json_schema": {"schema": fine}}).grammar
    assert issubclass(UnsupportedSchema, ValueError)


def test_calls_of_strict_functions_conform(writer: Writer) -> None:
    """The model may write text; from its first call on the grammar holds, for strict functions alone."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    strict: dict[str, Any] = {"type": "function", "function": {"name": "one", "strict": True, "parameters": schema}}
    loose: dict[str, Any] = {"type": "function", "function": {"name": "two", "parameters": {**schema, "not": {}}}}
    tools = [strict, loose]
    grammar = request(tools).grammar
    assert grammar
    assert (grammar.param, grammar.after) == ("tools", "<tool_call>")
    found = [parsed("<tool_call>" + writer.write(grammar, seed), tools)[1] for seed in range(30)]
    assert {name for calls in found for name, _ in calls} == {"one", "two"}
    assert all(set(arguments) == {"a"} for calls in found for name, arguments in calls if name == "one")
    assert all(isinstance(arguments["a"], int) for calls in found for name, arguments in calls if name == "one")
    assert any(len(calls) > 1 for calls in found)
    single = request(tools, parallel_tool_calls=False).grammar
    assert single
    assert {len(parsed("<tool_call>" + writer.write(single, seed), tools)[1]) for seed in range(20)} == {1}
    assert request([loose]).grammar is None
    with pytest.raises(ValueError, match="the keyword not is not supported"):
        request([{"type": "function", "function": {**loose["function"], "strict": True}}])
