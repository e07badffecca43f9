"""The tokens of a long text are counted in another process, before the prompt is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine import PromptTooLong, Refused, prompt_size
from service.engine.token_counter import TokenCounter
from service.isolation.processes import Died
from service.model.processor import Processor


@pytest.fixture(scope="module")
def processor(checkpoints: dict[str, Path]) -> Processor:
    return Processor.read(checkpoints["1.0.0"])


@pytest.fixture(scope="module")
def counter(processor: Processor) -> Iterator[TokenCounter]:
    found = TokenCounter(processor.tokenizer)
    yield found
    found.close()


WORDS = st.text(max_size=8) | st.sampled_from(["word ", "世界", "\n", "<|user|>", "a" * 300, "\ud7ff", "é "])
MESSAGES = st.lists(st.lists(WORDS, max_size=20).map("".join), min_size=1, max_size=5).map(
    lambda texts: [{"role": "user", "content": text} for text in texts]
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(MESSAGES)
def test_a_prompt_has_at_least_as_many_tokens_as_were_counted(
    processor: Processor, counter: TokenCounter, messages: list[Any]
) -> None:
    """No prompt is refused that would fit; all but what the template adds is counted."""
    counted = counter.count([*prompt_size.texts(messages, ())])
    tokens = processor.inputs(messages, None)["input_ids"].shape[1]
    assert counted <= tokens
    assert counted > tokens - 40 - 20 * len(messages) - sum(
        message["content"].count("<|user|>") for message in messages
    )


def test_a_text_that_ends_the_process_is_refused(counter: TokenCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason."""

    def die(*_: object) -> None:
        raise Died("it takes more than 5 s of processor time")

    monkeypatch.setattr(counter._processes, "call", die)
    with pytest.raises(Refused, match="cannot be tokenized: it takes more than 5 s") as error:
        counter.count(["x"])
    assert not isinstance(error.value, PromptTooLong)
