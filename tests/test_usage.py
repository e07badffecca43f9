"""The token counts of a response: of reasoning, and of a stream so far."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.chat.usage import ReasoningTokens, UsageCounter
from service.engine import Delta, Finish
from service.engine.detokenizer import Detokenizer, OutputProcessor, StopStrings
from tests.test_app import CHAT, HELLO, FakeEngine, client, events

PIECES = ("<think>", "</think>", "<", "/thi", "nk>", "a", " ", "\n", "</thin", "k>b", "世")
outputs = st.lists(st.sampled_from(PIECES), max_size=12)


def counted(tokens: Sequence[str], *, thinking: bool = True, streamed: bool = False, merge: Sequence[int] = ()) -> int:
    """Count the reasoning of an output, whose tokens come one by one or merged into deltas of these sizes."""
    counter = ReasoningTokens(thinking=thinking, needs_open_tag=streamed)
    rest = list(tokens)
    for size in itertools.chain(merge, itertools.repeat(1)):
        if not rest:
            break
        counter.add("".join(rest[:size]), len(rest[:size]))
        rest = rest[size:]
    return counter.count(len(tokens))


def expected(tokens: Sequence[str], *, streamed: bool) -> int:
    """The tokens up to the one that completes the first tag."""
    text = "".join(tokens)
    begins = text.lstrip().startswith("<think>")
    if "</think>" in text and (begins or not streamed):
        end = text.index("</think>") + len("</think>")
        return next(count for count in range(len(tokens) + 1) if len("".join(tokens[:count])) >= end)
    return len(tokens) if begins else 0


@example(["</thi", "nk>", "a"], True, True)
@given(outputs, st.booleans(), st.booleans())
def test_reasoning_is_what_comes_before_and_with_the_closing_tag(
    tokens: list[str], opened: bool, streamed: bool
) -> None:
    """However tokens cut the tags. Without the closing tag all is reasoning, without thinking nothing."""
    tokens = ["<think>", *tokens] if opened else tokens
    assert counted(tokens, streamed=streamed) == expected(tokens, streamed=streamed)
    assert counted(tokens, streamed=streamed, thinking=False) == 0


@given(outputs, st.lists(st.integers(1, 4), max_size=6), st.booleans())
def test_the_delta_that_closes_the_reasoning_counts_as_a_whole(
    tokens: list[str], merge: list[int], streamed: bool
) -> None:
    """Tokens that come in one delta are counted together: at most those of that delta are too many."""
    tokens = ["<think>", *tokens]
    ends = [*itertools.accumulate(merge), *range(sum(merge), len(tokens) + 1)]
    exact = expected(tokens, streamed=streamed)
    end = min((end for end in ends if end >= exact), default=len(tokens))
    assert counted(tokens, streamed=streamed, merge=merge) == min(end, len(tokens))


@given(st.lists(st.sampled_from((*"abé世", "<stop>", "<s", "")), max_size=12), st.booleans())
def test_deltas_have_the_numbers_of_their_tokens(words: list[str], stopped: bool) -> None:
    """Each has those since the last one: of its own text, and of what is held back for a stop string."""
    tokens = [bytes([byte]) for byte in "".join(words).encode()]
    processor = OutputProcessor(
        Detokenizer(lambda ids: b"".join(tokens[token] for token in ids).decode(errors="replace")),
        StopStrings(("<stop>",) if stopped else ()),
        frozenset(),
        prompt_tokens=5,
    )
    sent: list[Delta] = []
    for token in range(len(tokens)):
        if delta := processor.push(token):
            sent.append(delta)
            assert sum(one.tokens for one in sent) == token + 1
        if processor.ended:
            break
    if delta := processor.flush():
        sent.append(delta)
    assert all(one.prompt_tokens == 5 for one in sent)
    if not processor.ended:
        assert sum(one.tokens for one in sent) == len(tokens)
    if not stopped:
        assert all(one.tokens == len(one.text.encode()) for one in sent)


def test_the_end_token_counts_and_a_stream_without_opening_tag_has_no_reasoning() -> None:
    """The Finish has the number of all tokens, with one that is in no delta; what was sent as content is none."""
    for streamed, reasoning in ((True, 0), (False, 2)):
        counter = UsageCounter(1, thinking=True, needs_open_tag=streamed)
        counter.add(0, Delta("a</think>b", (), 2, 7))
        counter.add(0, Finish("stop", 7, 3))
        usage = counter.usage()
        assert (usage["completion_tokens"], usage["total_tokens"]) == (3, 10)
        assert usage["completion_tokens_details"]["reasoning_tokens"] == reasoning


def ask(engine: FakeEngine, stream: bool = True, **more: Any) -> list[Any]:
    answer = client(engine).post(CHAT, json={**HELLO, "stream": stream, **more})
    assert answer.status_code == 200, answer.text
    return events(answer.text) if stream else [answer.json()]


REASONING = ("<think>", "h", "m", "</think>", "y", "es")


@pytest.mark.parametrize(("thinking", "reasoning"), [(None, 4), (True, 4), (False, 0)])
def test_reasoning_tokens_are_in_the_usage(thinking: bool | None, reasoning: int) -> None:
    """Of a stream as of a whole answer, and of all choices together; none if thinking is off."""
    options: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": thinking}} if thinking is not None else {}
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 12,
        "total_tokens": 19,
        "completion_tokens_details": {"reasoning_tokens": 2 * reasoning},
    }
    [document] = ask(FakeEngine(REASONING), stream=False, n=2, **options)
    assert document["usage"] == usage
    *_, last, _ = ask(FakeEngine(REASONING), n=2, stream_options={"include_usage": True}, **options)
    assert (last["choices"], last["usage"]) == ([], usage)


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_continuous_usage_is_in_every_chunk(n: int, at_end: bool) -> None:
    """It grows up to the whole usage, and changes nothing else; the event at the end is asked for separately."""
    options = {"continuous_usage_stats": True} | ({"include_usage": True} if at_end else {})
    *chunks, _ = ask(FakeEngine(REASONING, pause=True), n=n, stream_options=options)
    *plain, _ = ask(FakeEngine(REASONING, pause=True), n=n, stream_options={"include_usage": at_end})
    assert [chunk["choices"] for chunk in chunks] == [chunk["choices"] for chunk in plain]
    assert (chunks[-1]["choices"] == []) == at_end
    totals = [chunk["usage"]["total_tokens"] for chunk in chunks]
    assert totals == sorted(totals)
    assert totals[0] == 7 + 1, "the role is sent with the first token"
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 6 * n,
        "total_tokens": 7 + 6 * n,
        "completion_tokens_details": {"reasoning_tokens": 4 * n},
    }
