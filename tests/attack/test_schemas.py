"""JSON schemas that crash a compiler, take hours or fill the memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from service.contract.engine_settings import EngineSettings
from service.engine import Finish, Grammar, Limits, Refused, Sampling
from service.engine.model_engine import ModelEngine
from service.engine.prompt_size import characters
from service.isolation.processes import IsolatedProcesses
from service.model.release import Release
from tests.attack.schemas import DEADLY, chain

ASKED = [{"role": "user", "content": "hi"}]
STRING = {"type": "string"}
LONGEST = 1 << 16  # characters


@pytest.fixture(scope="module")
def engine(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelEngine]:
    path = tmp_path_factory.mktemp("release")
    (path / "model").symlink_to(checkpoints["1.0.0"])
    limits = Limits(max_schema=1 << 18)  # more than the default: deadly ones reach the compiler
    made = ModelEngine.load(Release(path, "1.0.0", EngineSettings(), ()), threads=1, limits=limits,
                            progress=lambda *_: None)  # fmt: skip
    yield made
    made.close()


def ask(engine: ModelEngine, schema: Any) -> str | None:
    """Begin an answer with a schema; returns why it was refused."""

    async def answer() -> None:
        grammar = Grammar.of_document(schema)
        async for item in engine.stream(ASKED, Sampling(max_tokens=30, grammar=grammar), thinking=False):
            assert item or isinstance(item, Finish)

    try:
        asyncio.run(answer())
    except Refused as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", DEADLY)
def test_a_schema_that_kills_its_process_is_refused(engine: ModelEngine, kind: str) -> None:
    """The reason is given, other requests are answered, and the same schema is not tried again."""
    reason = ask(engine, DEADLY[kind])
    assert reason is not None
    assert "simplify it" in reason
    assert ask(engine, {"type": "object", "properties": {"a": STRING}}) is None
    started = time.monotonic()
    assert ask(engine, DEADLY[kind]) == reason
    assert time.monotonic() - started < 0.5


def test_a_long_schema_is_refused_unseen(engine: ModelEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length is the first limit."""
    monkeypatch.setattr(IsolatedProcesses, "call", None)
    assert "at most 262144 are allowed" in str(ask(engine, {"enum": ["x" * (1 << 18)]}))


def test_a_schema_that_nothing_conforms_to_is_refused(engine: ModelEngine) -> None:
    """Rather than answered with nothing."""
    for schema in ({"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}):
        assert "no output" in str(ask(engine, schema))


NUMBER = st.sampled_from([-1, 0, 1, 7, 1000, 10**6, 10**9, 2**31, 2**63, 10**18, 10**30, 0.1, 1e-9, 1e300, -1e300])
PATTERN = st.sampled_from(
    ["a", "^.*a.{30}$", "(a{1,100}){1,100}", r"^(\w{1,200}\s){1,50}$", "(" * 50, "^(?=a)b", "[^a]*b[^c]*", r"\p{L}+",
     "(.*a){8}", "|".join(f"w{number}.*" for number in range(50)), "", "(?i)x", "a**", r"\1"]
)  # fmt: skip
LEAF = st.one_of(
    st.fixed_dictionaries({"type": st.just("string")}, optional={
        "minLength": NUMBER, "maxLength": NUMBER, "pattern": PATTERN,
        "format": st.sampled_from(["email", "uuid", "date-time", "unheard", "ipv6"])}),
    st.fixed_dictionaries({"type": st.sampled_from(["integer", "number"])}, optional={
        "minimum": NUMBER, "maximum": NUMBER, "multipleOf": NUMBER, "exclusiveMinimum": NUMBER}),
    st.builds(lambda values: {"enum": values}, st.lists(st.text(max_size=5) | st.integers() | st.none(), max_size=30)),
    st.builds(lambda name: {"$ref": name}, st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/$defs/none", "http://x"])),
    st.sampled_from([{}, True, False, {"type": "unheard"}, {"const": 1}, {"not": {}}, [], None]),
)  # fmt: skip


def _composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.text(alphabet='ab"\\\x01é', max_size=3)
    several = st.lists(inner, max_size=4)
    return st.one_of(
        st.fixed_dictionaries({"type": st.just("array")}, optional={
            "items": inner, "prefixItems": several, "minItems": NUMBER, "maxItems": NUMBER}),
        st.fixed_dictionaries({"type": st.just("object")}, optional={
            "properties": st.dictionaries(names, inner, max_size=4), "required": st.lists(names, max_size=3),
            "additionalProperties": inner | st.booleans(), "minProperties": NUMBER, "maxProperties": NUMBER,
            "patternProperties": st.dictionaries(PATTERN, inner, max_size=3)}),
        st.builds(lambda kind, parts: {kind: parts}, st.sampled_from(["allOf", "anyOf", "oneOf"]), several),
        st.builds(lambda one, many: {"allOf": [one] * many}, inner, st.integers(1, 30)),
        st.builds(lambda one, many: {"anyOf": [one] * many}, inner, st.integers(1, 100)),
        st.builds(lambda one, many: {"properties": {f"p{n}": one for n in range(many)}}, inner, st.integers(1, 300)),
        st.builds(chain, st.integers(1, 2000), inner, st.sampled_from(["$ref", "items"])),
    )  # fmt: skip


SCHEMA = st.builds(
    lambda root, a, b: {**(root if isinstance(root, dict) else {}), "$defs": {"a": a, "b": b}},
    *[st.recursive(LEAF, _composed, max_leaves=6)] * 3,
)


def _survives(engine: ModelEngine, schema: Any) -> None:
    assume(characters(schema, LONGEST) < LONGEST)  # parts that occur many times multiply
    started = time.monotonic()
    reason = ask(engine, schema)
    assert reason is None or len(reason) < 500
    assert time.monotonic() - started < 40  # 3 s of processor time in the other process, on a busy machine, and here


@given(SCHEMA)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_schema_is_compiled_or_refused(engine: ModelEngine, schema: Any) -> None:
    """The worker survives, and the answer begins or is refused with a reason."""
    _survives(engine, schema)


@pytest.mark.long
@given(SCHEMA)
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_schemas(engine: ModelEngine, schema: Any) -> None:
    """The same for longer."""
    _survives(engine, schema)
