"""Where an output ends, and which tokens it may have, by the fields of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.engine import Finish, Grammar, Refused, Sampling
from service.engine.model_engine import ModelEngine
from service.model.processor import Processor
from tests.test_engine import ask, collect, load

GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def engine(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelEngine]:
    path = tmp_path_factory.mktemp("release")
    (path / "model").symlink_to(checkpoints["1.0.0"])
    made = load(path, dtype="float32", max_new_tokens=20)
    yield made
    made.close()


@pytest.fixture(scope="module")
def processor(checkpoints: dict[str, Path]) -> Processor:
    return Processor.read(checkpoints["1.0.0"])


@pytest.fixture(scope="module")
def tokens(engine: ModelEngine, processor: Processor) -> list[int]:
    """The greedy output, of distinct tokens at its begin."""
    texts, _ = asyncio.run(collect(engine, sampling=Sampling(**GREEDY)))
    found = [processor.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert all(len(ids) == 1 for ids in found)
    return [token for [token] in found]


def greedy(engine: ModelEngine, processor: Processor, **more: Any) -> tuple[list[int], Finish]:
    text, finish = ask(engine, "Hello", Sampling(**{**GREEDY, **more}))
    return processor.tokenizer.encode(text, add_special_tokens=False), finish


def favoured(engine: ModelEngine) -> tuple[tuple[int, float], ...]:
    """A bias with which the model wants to end the output at once."""
    return ((min(engine._checkpoint.end_tokens), 100.0),)


def test_a_bias_forbids_or_forces_a_token(engine: ModelEngine, processor: Processor, tokens: list[int]) -> None:
    """-100 forbids it, 100 forces it, and others that are sampled in the same step are not affected."""
    first = tokens[0]
    assert first not in greedy(engine, processor, logit_bias=((first, -100.0),))[0]
    assert greedy(engine, processor, logit_bias=((tokens[3], 100.0),))[0] == [tokens[3]] * 12

    forced = [tokens[3], tokens[4], tokens[5]]
    samplings = [Sampling(**GREEDY, logit_bias=((token, 100.0),)) for token in forced]

    async def together() -> list[tuple[list[str], Finish]]:
        plain = Sampling(**GREEDY)
        return await asyncio.gather(*(collect(engine, sampling=one) for one in (*samplings, plain)))

    *biased, free = asyncio.run(together())
    assert ["".join(texts) for texts, _ in biased] == [processor.text([token] * 12) for token in forced]
    assert "".join(free[0]) == processor.text(tokens)


def test_a_grammar_stands_above_a_bias(engine: ModelEngine, processor: Processor, tokens: list[int]) -> None:
    """A forced token does not break the format."""
    one_of = Grammar('start: document\ndocument: "yes" | "no"')
    forced = Sampling(**GREEDY, logit_bias=((tokens[3], 100.0),), grammar=one_of)
    text, finish = ask(engine, "Hello", forced, thinking=False)
    assert text in ("yes", "no")
    assert finish.reason == "stop"


def test_an_end_token_waits_for_min_tokens(engine: ModelEngine, processor: Processor) -> None:
    """Of a model that would end at once the output has exactly so many tokens, and the end token."""
    assert greedy(engine, processor, logit_bias=favoured(engine)) == ([], Finish("stop", 8, 1))
    for count in (1, 5):
        ids, finish = greedy(engine, processor, logit_bias=favoured(engine), min_tokens=count)
        assert len(ids) == count
        assert finish == Finish("stop", 8, count + 1)


def test_a_stop_token_ends_the_output_and_waits_for_min_tokens(
    engine: ModelEngine, processor: Processor, tokens: list[int]
) -> None:
    """It is counted but not sent; before `min_tokens` it is not chosen."""
    at = tokens.index(tokens[3])
    assert greedy(engine, processor, stop_token_ids=(tokens[3],)) == (tokens[:at], Finish("stop", 8, at + 1))
    ids, _ = greedy(engine, processor, stop_token_ids=(tokens[3],), min_tokens=at + 1)
    assert tokens[3] not in ids
    assert len(ids) > at


def test_a_stop_string_waits_for_min_tokens(engine: ModelEngine, processor: Processor, tokens: list[int]) -> None:
    """Text of earlier tokens does not end the output, that of the last one and of later ones does."""
    stop = processor.text([tokens[0]]).strip()
    assert ask(engine, "Hello", Sampling(**GREEDY, stop=(stop,)))[1].completion_tokens == 1
    late = greedy(engine, processor, stop=(stop,), min_tokens=2)[0]
    assert late[: len(late)] == tokens[: len(late)]
    assert len(late) >= 1
    every = tuple({processor.text([token]).strip() for token in tokens})
    assert ask(engine, "Hello", Sampling(**GREEDY, stop=every[:4], min_tokens=12))[1].completion_tokens == 12
    repeated = ((tokens[3], 100.0),)
    word = processor.text([tokens[3]]).strip()
    _, finish = greedy(engine, processor, logit_bias=repeated, stop=(word,), min_tokens=4)
    assert finish == Finish("stop", 8, 4)


def test_with_ignore_eos_the_limit_alone_ends_the_output(engine: ModelEngine, processor: Processor) -> None:
    """However much the model wants to end it; stop strings still do."""
    bias = favoured(engine)
    ids, finish = greedy(engine, processor, logit_bias=bias, ignore_eos=True)
    assert len(ids) == 12
    assert finish == Finish("length", 8, 12)
    word = processor.text(ids[:1]).strip()
    assert greedy(engine, processor, logit_bias=bias, ignore_eos=True, stop=(word,))[1] == Finish("stop", 8, 1)


@pytest.mark.parametrize(
    ("more", "param", "reason"),
    [
        ({"logit_bias": ((10**6, 1.0),)}, "logit_bias", "has the token 1000000; the model has tokens from 0 to"),
        ({"stop_token_ids": (10**6,)}, "stop_token_ids", "has the token 1000000; the model has tokens from 0 to"),
        ({"min_tokens": 21, "max_tokens": None}, "min_tokens", "is 21; the output can have at most 20 tokens"),
    ],
)
def test_what_the_model_does_not_have_is_refused_by_name(
    engine: ModelEngine, more: dict[str, Any], param: str, reason: str
) -> None:
    """The limits are those of the release."""
    with pytest.raises(Refused, match=reason) as caught:
        ask(engine, "Hello", Sampling(**{**GREEDY, **more}))
    assert caught.value.param == param


def test_a_grammar_may_begin_after_a_token(engine: ModelEngine, processor: Processor, tokens: list[int]) -> None:
    """Text before it is free, and the output ends with the grammar; without that token it never applies."""
    after = processor.tokenizer.convert_ids_to_tokens(tokens[2])
    bound = Grammar('start: document\ndocument: "yes"', after=after)
    text, finish = ask(engine, "Hello", Sampling(**GREEDY, grammar=bound))
    assert text == processor.text(tokens[: tokens.index(tokens[2]) + 1]) + "yes"
    assert finish.reason == "stop"
    never = Grammar('start: document\ndocument: "yes"', after="<tool_call>")
    assert greedy(engine, processor, grammar=never) == (tokens, Finish("length", 8, 12))
