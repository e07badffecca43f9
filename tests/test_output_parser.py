"""Parsing of the model's output, complete and in pieces that end anywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.chat.output_parser import OutputParser, ParsedText
from service.chat.tool_calls import joined

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "code": {"type": ["string", "null"]},
                "days": {"type": "integer"},
            },
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


def parser(*, thinking: bool = True, boxes: bool = False, tools: Any = ()) -> OutputParser:
    return OutputParser(thinking=thinking, boxes=boxes, tools=tools)


def parse_pieces(pieces: list[str], **options: Any) -> ParsedText:
    incremental = parser(**options)
    parsed = [*map(incremental.feed, pieces), incremental.flush()]
    return ParsedText(
        "".join(piece.reasoning for piece in parsed),
        "".join(piece.content for piece in parsed),
        tuple(call for piece in parsed for call in piece.calls),
    )


def splits(text: str) -> Iterator[list[str]]:
    """Split a text at every position into two pieces, and into single characters."""
    yield from ([text[:at], text[at:]] for at in range(len(text) + 1))
    yield list(text)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>hm</think>yes", "hm", "yes"),
        ("\n<think>\nhm\n</think>\n\nyes\n", "hm", "yes\n"),
        ("<think></think>yes", "", "yes"),
        ("yes", "", "yes"),
        ("  yes <think>no</think>", "", "  yes <think>no</think>"),
        ("<think>cut sho", "cut sho", ""),
        ("<think>cut </thi", "cut </thi", ""),
        ("<thi", "", "<thi"),
        ("<think>", "", ""),
        (" ", "", " "),
        ("<think>a < b </thin </think>c", "a < b </thin", "c"),
        ("<think>a</think><think>b</think>c", "a", "<think>b</think>c"),
        ("<think>x</think>\n<|begin_of_box|>4<|end_of_box|>.", "x", "4."),
        ("<|begin_of_<|box|>", "", "<|begin_of_<|box|>"),
        ("a <|end_of_bo", "", "a <|end_of_bo"),
    ],
)
def test_reasoning_is_split_wherever_the_pieces_end(text: str, reasoning: str, content: str) -> None:
    """Pieces that end anywhere are parsed as the table says, and so is the complete text without a lone closing tag."""
    for pieces in splits(text):
        assert parse_pieces(pieces) == ParsedText(reasoning, content), pieces
    if not text.startswith("  yes"):
        assert parser().parse(text) == ParsedText(reasoning, content)


def test_lone_closing_tag_splits_complete_text_only() -> None:
    """A complete text is split at a closing tag without an opening one; a stream has already sent it as content."""
    text = "hm\n</think>\nyes"
    assert parser().parse(text) == ParsedText("hm", "yes")
    assert parse_pieces(list(text)) == ParsedText("", text)


def test_without_thinking_everything_is_content() -> None:
    """With thinking disabled the text is returned unchanged."""
    text = "<think>hm</think>yes"
    assert parser(thinking=False).parse(text) == ParsedText("", text)
    assert parse_pieces(list(text), thinking=False) == ParsedText("", text)


def test_boxes_setting_keeps_box_tags() -> None:
    """With `boxes` the box tags are kept."""
    text = "<|begin_of_box|>4<|end_of_box|>"
    assert parse_pieces(list(text), boxes=True) == parser(boxes=True).parse(text) == ParsedText("", text)
    assert parse_pieces(list(text)) == ParsedText("", "4")


def test_only_possible_tags_are_held_back() -> None:
    """Text that cannot begin a tag is returned with the piece it came in."""
    one = parser(tools=[NOW])
    assert [one.feed(word) for word in ("1 ", "< 2", " and <b", "> ", "x")] == [
        ParsedText("", "1"),
        ParsedText("", " < 2"),
        ParsedText("", " and <b"),
        ParsedText("", ">"),
        ParsedText("", " x"),
    ]
    two = parser()
    assert two.feed("<think>a b") == ParsedText("a b")
    assert two.feed("</thinking> c") == ParsedText("</thinking> c")


CALL = (
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>42</arg_value>\n<arg_key>days</arg_key>\n"
    '<arg_value>3</arg_value>\n<arg_key>more</arg_key>\n<arg_value>{"a": [1, "世"]}</arg_value>\n'
    "<arg_key>free</arg_key>\n<arg_value>not JSON</arg_value>\n<arg_key>code</arg_key><arg_value>null</arg_value>\n"
    "</tool_call>"
)
ARGUMENTS = {"city": "42", "days": 3, "more": {"a": [1, "世"]}, "free": "not JSON", "code": None}


def test_tool_calls_are_parsed_wherever_the_pieces_end() -> None:
    """Values are parsed as JSON unless the schema allows a string; white space around calls is dropped."""
    text = f"<think>call</think>\nLet me see.\n{CALL}\n<tool_call>now</tool_call>\n"
    tools = [WEATHER, NOW]
    for parsed in (parser(tools=tools).parse(text), *(parse_pieces(pieces, tools=tools) for pieces in splits(text))):
        assert (parsed.reasoning, parsed.content) == ("call", "Let me see.")
        first, second = joined(parsed.calls)
        assert (first.name, json.loads(first.arguments)) == ("weather", ARGUMENTS)
        assert (second.name, second.arguments) == ("now", "{}")
        assert first.id != second.id


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>weather\n<arg_key>city</arg_key>\n",
        "<tool_call>weather\n<arg_key>city</arg_key>\n</tool_call>",
        "<tool_call>weather\n<arg_value>Ulm</arg_value></tool_call>",
        "<tool_call>weather and more</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>unknown\n</tool_call>",
        "<tool_call>weather {city: 1}",
        "so <tool_cal",
        "a </tool_call> b\n",
    ],
)
def test_invalid_tool_call_stays_text(text: str) -> None:
    """A call that is malformed, cut off or names no tool of the request is returned unchanged."""
    for pieces in splits(text):
        assert parse_pieces(pieces, tools=[WEATHER]) == ParsedText("", text)
    assert parser(tools=[WEATHER]).parse(text) == ParsedText("", text)


def test_value_may_contain_the_closing_tag() -> None:
    """A closing tag inside a value does not end the call."""
    text = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value></tool_call></arg_value>\n</tool_call>"
    for pieces in splits(text):
        [call] = joined(parse_pieces(pieces, tools=[WEATHER]).calls)
        assert json.loads(call.arguments) == {"city": "</tool_call>"}


@pytest.mark.parametrize("value", ["NaN", "9" * 5000, "[" * 5000, '"\\ud800"', "1e999"])
def test_values_that_are_not_json_are_strings(value: str) -> None:
    """Huge numbers, deep nesting and lone surrogates are passed as text."""
    text = f"<tool_call>weather<arg_key>days</arg_key><arg_value>{value}</arg_value></tool_call>"
    [call] = joined(parser(tools=[WEATHER]).parse(text).calls)
    assert json.loads(call.arguments)["days"] == value
    call.arguments.encode()


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>Now.<tool_call>now</tool_call></think>Done", "Now.", "Done"),
        ("<think>Now.\n<tool_call>now</tool_call>", "Now.", ""),
        ("<think><tool_call>now</tool_call>\nI called", "I called", ""),
        ("Now.<tool_call>now</tool_call>", "", "Now."),
        ("<think>It is <tool_call>unknown</tool_call>", "It is <tool_call>unknown</tool_call>", ""),
    ],
)
def test_a_call_inside_the_reasoning_is_a_call(text: str, reasoning: str, content: str) -> None:
    """Whether or not the reasoning is closed."""
    for parsed in (parser(tools=[NOW]).parse(text), *(parse_pieces(pieces, tools=[NOW]) for pieces in splits(text))):
        assert (parsed.reasoning, parsed.content) == (reasoning, content)
        assert [call.name for call in joined(parsed.calls)] == ["now"] * ("unknown" not in text)


def test_without_tools_a_call_is_text() -> None:
    """Without tools in the request, calls are not parsed."""
    assert parser().parse(CALL) == parse_pieces(list(CALL)) == ParsedText("", CALL)


TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|begin_of_box|>", "<arg_key>", "</arg_key>")
WORDS = st.lists(st.sampled_from([*TAGS, "<arg_value>", "</arg_value>", "now", " ", "\n", "<", "a"]), max_size=14)


@given(WORDS, st.data())
def test_splitting_does_not_change_the_result(words: list[str], data: st.DataObject) -> None:
    """Any text of tags and words is parsed alike in any pieces."""
    text = "".join(words)
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *ends, len(text)])]

    def plain(piece: ParsedText) -> Any:
        return piece.reasoning, piece.content, [(call.name, call.arguments) for call in joined(piece.calls)]

    assert plain(parse_pieces(pieces, tools=[NOW])) == plain(parse_pieces([text], tools=[NOW]))
