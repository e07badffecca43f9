"""Tool calls in GLM's format come back typed as the tool's schema says, and while they are written."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.chat.argument_types import ArgumentTypes
from service.chat.tool_calls import ToolCall, ToolCallParser, joined

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e9, 1e9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(max_size=12)
    | st.sampled_from(["5", "true", "null ", " a\n", "None", '"x"', "</arg", "<tool_call>"]),
    "integer": st.integers(-(2**60), 2**60),
    "number": st.floats(-1e9, 1e9) | st.integers(-9, 9),
    "boolean": st.booleans(),
    "null": st.none(),
    "object": st.dictionaries(st.text(max_size=3), JSON, max_size=3),
    "array": st.lists(JSON, max_size=3),
}
TYPES = {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}}
AMBIGUOUS = ("</arg_value>", "<|begin_of_box|>")


@st.composite
def schemas(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """A schema of one type, spelled in any way, the definitions that it refers to, and a value that conforms to it."""
    name = draw(st.sampled_from(sorted(VALUES)))
    value = draw(VALUES[name])
    is_nullable = draw(st.booleans())
    if is_nullable and draw(st.booleans()):
        value = None
    plain: dict[str, Any] = {"type": name}
    null = {"type": "null"}
    definitions = {"a": {"$ref": "#/$defs/b/c"}, "b": {"c": plain}}
    spellings = [
        [{"type": [name, "null"]}, {"anyOf": [plain, null]}, {"oneOf": [null, {"$ref": "#/$defs/a"}]},
         {"anyOf": [{"enum": [None]}, {"allOf": [plain]}]}]
        if is_nullable
        else [plain, {"type": [name]}, {"$ref": "#/$defs/a"}, {"allOf": [{"title": "A"}, plain]}, {"anyOf": [plain]}]
    ]  # fmt: skip
    spelling = draw(st.sampled_from(spellings[0]))
    if draw(st.booleans()):
        spelling = {**spelling, "description": "text", "default": "x"}
    return spelling, definitions, value


def written(name: str, arguments: dict[str, Any]) -> str:
    """A call as the chat template writes it: strings as they are, everything else as JSON."""
    lines = [f"<tool_call>{name}"]
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>")
    return "\n".join([*lines, "</tool_call>"])


def tool(name: str, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def parse(pieces: list[str], tools: list[Any], *, is_complete: bool = True, **options: Any) -> tuple[str, list[Any]]:
    """The text, and the calls without their ids, of an output that arrives in pieces."""
    parser = ToolCallParser(tools, **options)
    results = [*map(parser.feed, pieces), parser.flush(is_complete=is_complete)]
    calls = joined(piece for _, found in results for piece in found)
    assert len({call.id for call in calls}) == len(calls)
    return "".join(text for text, _ in results), [(call.name, call.arguments) for call in calls]


def cut(text: str, data: st.DataObject) -> list[str]:
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in itertools.pairwise([0, *ends, len(text)])]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(schemas(), max_size=3), st.data())
def test_arguments_come_back_typed_as_the_schema_says(found: list[Any], data: st.DataObject) -> None:
    """Whatever way the schema spells a type, and the same in any pieces."""
    parameters: dict[str, Any] = {"type": "object", "properties": {}, "$defs": {}}
    arguments = {}
    for number, (schema, definitions, value) in enumerate(found):
        own = json.loads(json.dumps([schema, definitions]).replace("#/$defs", f"#/$defs/d{number}"))
        parameters["properties"][f"k{number}"], parameters["$defs"][f"d{number}"] = own
        arguments[f"k{number}"] = value
    text = written("f", arguments)
    if any(tag in value for value in arguments.values() if isinstance(value, str) for tag in AMBIGUOUS):
        return
    tools = [tool("f", parameters)]
    [(name, encoded)] = parse([text], tools)[1]
    decoded = json.loads(encoded)
    assert (name, repr(decoded)) == ("f", repr(arguments)) or decoded == arguments
    for key, value in arguments.items():
        assert type(decoded[key]) is type(value) or {type(decoded[key]), type(value)} == {int, float}
    assert parse(cut(text, data), tools) == parse(list(text), tools) == parse([text], tools)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "53111", "53111"),
        ({"type": ["string", "integer"]}, "5", "5"),
        ({"enum": ["a", 1, None]}, "1", 1),
        ({"enum": ["1", 2]}, "1", "1"),
        ({"const": "true"}, "true", "true"),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, '{"a": 1}', {"a": 1}),
        ({"type": "boolean"}, "True", True),
        ({"type": "object"}, "{'a': None, 'b': (1, True)}", {"a": None, "b": [1, True]}),
        ({"type": ["object", "null"]}, "None", None),
        ({"type": "integer"}, "5.0", 5),
        ({"type": "number"}, "5.5", 5.5),
        ({"type": "integer"}, "many", "many"),
        ({"type": "integer"}, "'5'", "'5'"),
        ({}, "42", 42),
        ({}, "not JSON", "not JSON"),
        (True, "null", None),
        ({"$ref": "#/$defs/none"}, "1", 1),
        ({"$ref": "http://x"}, "1", 1),
        ({"$ref": "#"}, '{"a": 1}', {"a": 1}),
        ({"type": "unheard of"}, "[1]", [1]),
    ],
)
def test_the_value_of_a_text(schema: Any, text: str, value: Any) -> None:
    """A string stays a string where one is allowed; what Python's users write becomes what it means."""
    found = ArgumentTypes({"type": "object", "properties": {"a": schema}}).value("a", text)
    assert (type(found), found) == (type(value), value)


def test_properties_in_parts_of_the_schema() -> None:
    """Arguments are declared in references and compositions too."""
    types = ArgumentTypes(
        {
            "allOf": [{"$ref": "#/$defs/base"}, {"anyOf": [{"properties": {"b": {"type": "string"}}}]}],
            "$defs": {"base": {"properties": {"a": {"type": "string"}}, "allOf": [{"$ref": "#/$defs/base"}]}},
        }
    )
    assert [types.value(name, "1") for name in "abc"] == ["1", "1", 1]


def test_any_schema_is_read_in_bounded_time() -> None:
    """References that multiply, form circles or are deep."""
    doubled = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(60)}
    deep = {f"b{n}": {"$ref": f"#/$defs/b{n + 1}"} for n in range(5000)}
    circle = {"c": {"allOf": [{"$ref": "#/$defs/d"}]}, "d": {"anyOf": [{"$ref": "#/$defs/c"}]}}
    for name in ("a0", "b0", "c"):
        parameters = {"properties": {"x": {"$ref": f"#/$defs/{name}"}}, "$defs": doubled | deep | circle}
        assert ArgumentTypes(parameters).value("x", "1") == 1


TOOLS = [
    tool("weather", {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}),
    tool("now", None),
]
CITY = "<arg_key>city</arg_key>\n<arg_value>Ulm</arg_value>"


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"<tool_call>weather\n{CITY}</tool_call>", "", [("weather", '{"city": "Ulm"}')]),
        ("<tool_call>now</tool_call>", "", [("now", "{}")]),
        ("<tool_call>now\n\n</tool_call>\n", "", [("now", "{}")]),
        (f"a\n<tool_call>weather{CITY}{CITY}</tool_call> b", "a b", [("weather", '{"city": "Ulm"}')]),
        (f"<tool_call>weather\n{CITY}, and so on\n</tool_call>", "", [("weather", '{"city": "Ulm"}')]),
        (f"<tool_call>weather\n{CITY}\n<arg_key>days</arg_key>\n</tool_call>", "", [("weather", '{"city": "Ulm"}')]),
        ("<tool_call>unknown\n</tool_call>", "<tool_call>unknown\n</tool_call>", []),
        ("<tool_call><tool_call>now</tool_call>", "<tool_call>", [("now", "{}")]),
        ("<tool_call>now, please", "<tool_call>now, please", []),
        (f"<tool_call>weather\n{CITY}", "", [("weather", '{"city": "Ulm"}')]),
        (f"<tool_call>weather\n{CITY}\n<arg_key>da", "", [("weather", '{"city": "Ulm"')]),
        ("<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Ul", "", [("weather", '{"city": "Ul')]),
        ("<tool_call>weather\n<arg_key>days</arg_key>\n<arg_value>1", "", [("weather", "")]),
    ],
)
def test_calls_as_models_write_them(text: str, content: str, calls: list[Any]) -> None:
    """Nothing is lost and no tag is leaked; one that was not finished is no JSON, unless its last tag alone lacks."""
    for pieces in ([text], list(text), *([text[:at], text[at:]] for at in range(len(text)))):
        assert parse(pieces, TOOLS) == (content, calls)


def test_a_call_that_was_cut_off_is_not_completed() -> None:
    """At the limit of tokens more arguments might have followed."""
    assert parse([f"<tool_call>weather\n{CITY}\n"], TOOLS, is_complete=False) == ("", [("weather", '{"city": "Ulm"')])


@given(st.data())
def test_an_output_that_is_cut_off_has_no_part_of_a_call_in_its_content(data: st.DataObject) -> None:
    """Wherever that is: behind `<tool_call>` comes the name of a tool, so the rest is a call. Its tag is one token."""
    call = written("f", {"a": "x", "b": "y"})
    text = f"Hello.\n{call}\n{call}"
    tags = [at for at in range(len(text)) if text.startswith("<tool_call>", at)]
    places = [at for at in range(len(text)) if not any(tag < at < tag + len("<tool_call>") for tag in tags)]
    at = data.draw(st.sampled_from(places))
    parser = ToolCallParser([{"function": {"name": "f", "parameters": TYPES}}])
    content, pieces = parser.feed(text[:at])
    rest, more = parser.flush(is_complete=False)
    assert "Hello.".startswith((content + rest).strip())
    assert len(joined([*pieces, *more])) <= 2


def test_all_calls_but_the_first_are_dropped_if_asked_for() -> None:
    """They are not leaked as text either."""
    text = f"<tool_call>now</tool_call>\n<tool_call>weather\n{CITY}</tool_call> b"
    assert parse(list(text), TOOLS, single=True) == (" b", [("now", "{}")])


def test_a_string_is_passed_on_while_it_is_written() -> None:
    """And its name before: a long argument is no silence."""
    parser = ToolCallParser(TOOLS)
    parser.feed("<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>")
    arguments = [parser.feed(word)[1][-1].arguments for word in ("St. ", "Gallen\n", '"', " in")]
    assert arguments == ["St. ", "Gallen\\n", '\\"', " in"]
    assert joined(parser.feed("the East</arg_value></tool_call>")[1]) == (ToolCall("", "", 'the East"}'),)
