"""Formats of the content: outputs of their grammars, whatever the model likes, are what the client asked for."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from service.chat.request import ChatRequest, parse_request
from service.engine import Refused
from service.engine.grammar_compiler import GrammarCompiler
from service.engine.grammar_probe import InvalidGrammar
from tests.test_app import HELLO
from tests.test_tool_grammar import Writer, writer

__all__ = ["writer"]


def parse(**more: Any) -> ChatRequest:
    return parse_request(json.dumps({**HELLO, **more}).encode())


def written(writer: Writer, seed: int, **more: Any) -> str:
    grammar = parse(**more).grammar
    assert grammar
    return writer.write(grammar, seed)


TEXTS = st.text(min_size=1, max_size=6).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))


@given(st.lists(TEXTS, min_size=1, max_size=5), st.integers(0, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_choice_is_one_of_the_texts(writer: Writer, texts: list[str], seed: int) -> None:
    """Quotes, line breaks and control characters do not end the rule."""
    assert written(writer, seed, guided_choice=texts) in texts


PATTERNS = st.recursive(
    st.sampled_from(
        ["a", "/", r"\/", "\n", r"\n", r"\\", '"', "[/b]", r"\d", "é", r"\x2f", "//", r"\.", "[^a-z]", "$"]
    ),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        inner.map(lambda one: f"({one})?"),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        inner.map(lambda one: f"(?:{one}){{1,2}}"),
    ),
    max_leaves=5,
).filter(lambda pattern: "$" not in pattern[:-1])


@given(PATTERNS, st.integers(0, 9))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_output_matches_the_whole_regular_expression(writer: Writer, pattern: str, seed: int) -> None:
    """As Python reads it; no delimiter in it ends the rule."""
    if pattern.rstrip("$"):
        # the engine's Unicode may be newer than Python's, which knows fewer digits
        output = "".join(
            "0" if unicodedata.category(one) == "Cn" else one for one in written(writer, seed, guided_regex=pattern)
        )
        assert re.fullmatch(pattern, output)


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", r"(a)\1", r"\bfoo\b", "a\nstart: b", "a/\nb: /c"])
def test_a_regular_expression_that_cannot_be_used_is_refused(writer: Writer, pattern: str) -> None:
    """In our words; with line breaks it is one pattern, not several rules."""
    grammar = parse(structured_outputs={"regex": pattern}).grammar
    assert grammar
    if "\n" in pattern:
        assert writer.write(grammar, 0) == pattern
        return
    with pytest.raises(ValueError) as caught:
        compiler(writer)(grammar.text)
    refused: Refused = InvalidGrammar(str(caught.value), grammar)
    assert str(refused) == (
        "the regular expression cannot be used: "
        "a pattern is no regular expression, or uses look-around or back-references"
    )
    assert refused.param == "structured_outputs.regex"


def compiler(writer: Writer) -> Callable[[str], Any]:
    made = GrammarCompiler.__new__(GrammarCompiler)
    made._tokenizer = writer._compiler
    return made.compile


class Colour(Enum):
    """Strings."""

    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    """Numbers."""

    SMALL = 1
    LARGE = 2


class Point(BaseModel):
    """Constrained numbers."""

    x: int = Field(ge=-5, le=5)
    y: Annotated[float, Field(gt=0, lt=1)] = 0.5
    z: Annotated[int, Field(multiple_of=3)] | None = None


class Cat(BaseModel):
    """One of a union."""

    kind: Literal["cat"]
    lives: int | None = None


class Dog(BaseModel):
    """Another."""

    kind: Literal["dog"]
    name: str = Field(min_length=1, max_length=5, pattern="^[a-z]+$")


class Node(BaseModel):
    """A recursive model."""

    value: bool
    children: list[Node] = Field(default=[], max_length=2)


class Strict(BaseModel):
    """No further fields."""

    model_config = ConfigDict(extra="forbid")
    colour: Colour
    size: Size = Size.SMALL


class Aliased(BaseModel):
    """A field of another name, and one whose name is a keyword of JSON schema."""

    not_: int = Field(alias="not")
    description: str = Field(description="a text", examples=["x"], max_length=3)


SHAPES: list[Any] = [
    Point, Strict, Node, Aliased, Cat | Dog, Annotated[Cat | Dog, Field(discriminator="kind")], Colour, Size, UUID,
    bool | None, Literal["a", 1, None], bytes, float, str,
    Annotated[str, Field(min_length=2, max_length=4)], Annotated[str, Field(pattern=r"^\d{3}-[a-c]$")],
    Path,
]  # fmt: skip


def _composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    hashable = st.sampled_from([Colour, Size, UUID, Literal["a", 1]])
    return st.one_of(
        inner.map(lambda one: Annotated[list[one], Field(min_length=1, max_length=3)]),  # type: ignore[valid-type]
        inner.map(lambda one: dict[str, one]),  # type: ignore[valid-type]
        inner.map(lambda one: one | None),
        st.tuples(inner, inner).map(tuple.__class_getitem__),
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
        hashable.map(lambda one: set[one]),  # type: ignore[valid-type]
    )


TYPES = st.recursive(st.sampled_from(SHAPES), _composed, max_leaves=3)


@st.composite
def models(draw: st.DrawFn) -> type[BaseModel]:
    """A model with up to three fields of any types, required or not."""
    fields: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(["a", "b_c", "items"]), unique=True, min_size=1, max_size=3)):
        shape = draw(TYPES)
        fields[name] = (shape, ...) if draw(st.booleans()) else (shape | None, None)
    return create_model("Drawn", **fields)


@given(models(), st.integers(0, 99))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_pydantic_writes_is_taken_and_held(writer: Writer, model: type[BaseModel], seed: int) -> None:
    """The schema of any model is accepted, and an output of its grammar is one of the model's documents."""
    schema = {"name": "drawn", "schema": model.model_json_schema(), "strict": True}
    text = written(writer, seed, response_format={"type": "json_schema", "json_schema": schema})
    note(schema["schema"])
    note(text)
    model.model_validate_json(text)


@pytest.mark.parametrize("kind", [date, time, datetime, timedelta])
def test_dates_and_times_have_their_format(writer: Writer, kind: type) -> None:
    """What Python refuses of them is what JSON schema allows: the second 60, days of other years, any duration."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    for seed in range(20):
        text = json.loads(written(writer, seed, guided_json=adapter.json_schema()))
        try:
            adapter.validate_python(text)
        except ValidationError as error:
            assert re.search("too large|outside expected range|extra characters|day value", str(error)), text  # noqa: PT017


DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"  # as pydantic 2.12 writes it


def test_a_decimal_is_a_number(writer: Writer) -> None:
    """Its other form, a string, has a pattern that the output cannot be held to."""
    schema = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": DECIMAL}, {"type": "null"}]}
    assert {type(json.loads(written(writer, seed, guided_json=schema))) for seed in range(30)} <= {
        int,
        float,
        type(None),
    }
    alone = {"type": "string", "pattern": DECIMAL}
    assert isinstance(json.loads(written(writer, 0, guided_json=alone)), str)
