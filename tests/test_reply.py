"""What the engine's text says, whole and in pieces that end anywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.chat.output_parser import OutputParser, ParsedText

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


def streamed(pieces: list[str], **options: Any) -> ParsedText:
    one = parser(**options)
    found = [*map(one.feed, pieces), one.flush()]
    return ParsedText(
        "".join(piece.reasoning for piece in found),
        "".join(piece.content for piece in found),
        tuple(call for piece in found for call in piece.calls),
    )


def cuts(text: str) -> Iterator[list[str]]:
    """Cut a text at every place, into two, and into single characters."""
    yield from ([text[:at], text[at:]] for at in range(len(text) + 1))
    yield list(text)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
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
def test_a_thought_is_told_apart_wherever_the_tokens_end(text: str, thought: str, answer: str) -> None:
    """A stream cut anywhere says the same as the table; so does the whole text, unless a closing mark stands alone."""
    for pieces in cuts(text):
        assert streamed(pieces) == ParsedText(thought, answer), pieces
    if not text.startswith("  yes"):
        assert parser().parse(text) == ParsedText(thought, answer)


def test_a_closing_mark_alone_splits_a_whole_text_only() -> None:
    """Without the opening mark a whole text is split; a stream has said it already, and keeps the mark."""
    text = "hm\n</think>\nyes"
    assert parser().parse(text) == ParsedText("hm", "yes")
    assert streamed(list(text)) == ParsedText("", text)


def test_without_thinking_all_is_the_answer() -> None:
    """A request that switches thinking off gets its text as it is."""
    text = "<think>hm</think>yes"
    assert parser(thinking=False).parse(text) == ParsedText("", text)
    assert streamed(list(text), thinking=False) == ParsedText("", text)


def test_boxes_are_kept_when_the_setting_says_so() -> None:
    """With `boxes` the marks stay."""
    text = "<|begin_of_box|>4<|end_of_box|>"
    assert streamed(list(text), boxes=True) == parser(boxes=True).parse(text) == ParsedText("", text)
    assert streamed(list(text)) == ParsedText("", "4")


def test_nothing_is_held_back_without_need() -> None:
    """Text that can become no mark is given out with the piece in which it came."""
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


def test_calls_are_read_wherever_the_tokens_end() -> None:
    """Values are JSON where they are and the schema does not say string; white space around calls is no content."""
    text = f"<think>call</think>\nLet me see.\n{CALL}\n<tool_call>now</tool_call>\n"
    for said in (parser(tools=[WEATHER, NOW]).parse(text), *(streamed(p, tools=[WEATHER, NOW]) for p in cuts(text))):
        assert (said.reasoning, said.content) == ("call", "Let me see.")
        first, second = said.calls
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
def test_what_is_no_call_stays_text(text: str) -> None:
    """A call that is malformed, cut short or names no tool of the request is given out as it came."""
    for pieces in cuts(text):
        assert streamed(pieces, tools=[WEATHER]) == ParsedText("", text)
    assert parser(tools=[WEATHER]).parse(text) == ParsedText("", text)


def test_a_value_may_hold_the_closing_mark() -> None:
    """A value is read to its own end."""
    text = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value></tool_call></arg_value>\n</tool_call>"
    for pieces in cuts(text):
        [call] = streamed(pieces, tools=[WEATHER]).calls
        assert json.loads(call.arguments) == {"city": "</tool_call>"}


@pytest.mark.parametrize("value", ["NaN", "9" * 5000, "[" * 5000, '"\\ud800"', "1e999"])
def test_values_that_json_cannot_carry_are_strings(value: str) -> None:
    """Numbers without bound, endless nesting and lone surrogates become no part of the arguments but as text."""
    text = f"<tool_call>weather<arg_key>days</arg_key><arg_value>{value}</arg_value></tool_call>"
    [call] = parser(tools=[WEATHER]).parse(text).calls
    assert json.loads(call.arguments)["days"] == value
    call.arguments.encode()


def test_without_tools_a_call_is_text() -> None:
    """A request that gave no tools is never told of a call."""
    assert parser().parse(CALL) == streamed(list(CALL)) == ParsedText("", CALL)


MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|begin_of_box|>", "<arg_key>", "</arg_key>")
WORDS = st.lists(st.sampled_from([*MARKS, "<arg_value>", "</arg_value>", "now", " ", "\n", "<", "a"]), max_size=14)


@given(WORDS, st.data())
def test_how_a_text_is_cut_changes_nothing(words: list[str], data: st.DataObject) -> None:
    """Any text of marks and words reads the same in any pieces."""
    text = "".join(words)
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *ends, len(text)])]

    def plain(piece: ParsedText) -> Any:
        return piece.reasoning, piece.content, [(call.name, call.arguments) for call in piece.calls]

    assert plain(streamed(pieces, tools=[NOW])) == plain(streamed([text], tools=[NOW]))
