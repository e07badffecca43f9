"""How much prefill runs beside decoding requests, with a model that takes no time but says what it would take."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract import engine_settings
from service.engine.pace import Pace, gap_of
from service.engine.scheduler import Scheduler, Step
from service.engine.sequence import Sequence

GAP = 50.0  # in whatever unit of time


def scheduler_of(pace: Pace, rows: int = 8) -> Scheduler:
    cache = SimpleNamespace(
        budget=SimpleNamespace(rows=rows),
        fits=lambda *_, **__: True,
        reserve=lambda *_: True,
        release=lambda _: None,
        move=lambda *_: None,
    )
    return Scheduler(cast("Any", cache), pace)


def sequence_of(prompt: int, tokens: int) -> Sequence:
    return Sequence(cast("Any", SimpleNamespace(length=prompt)), cast("Any", None), cast("Any", None), tokens)


def steps_of(scheduler: Scheduler, seconds: Any) -> Iterator[Step]:
    """Compute steps until nothing runs or waits; `seconds` tells what a step takes."""
    while step := scheduler.schedule():
        scheduler.pace.record(len(step.decoding), step.prompt_tokens, seconds(step))
        sampled = [sequence for sequence, own in zip(step.sequences, step.sampled, strict=True) if own]
        scheduler.advance(step)
        for sequence in sampled:
            sequence.tokens.append(0)
            sequence.ended = len(sequence.tokens) >= sequence.max_new_tokens
        scheduler.reap()
        yield step


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 30)), min_size=1, max_size=12),
    decode=st.floats(0, 80),
    launch=st.floats(0, 80),
    token=st.floats(0, 3),
    every=st.integers(1, 6),
)
def test_no_prompt_makes_the_running_requests_wait_longer(
    prompts: list[tuple[int, int]], decode: float, launch: float, token: float, every: int
) -> None:
    """Whatever a step and a prompt token take: no step with prompts beside running requests takes more than the gap,
    than two steps without, or than the least chunk, unless there is no choice; and every request is answered.
    """
    pace = Pace(512, GAP)
    scheduler = scheduler_of(pace)
    running = sequence_of(1, 400)
    scheduler.add(running)

    def seconds(step: Step) -> float:
        return (decode if step.decoding else 0) + (launch + token * step.prompt_tokens if step.chunks else 0)

    waiting, added = [sequence_of(*each) for each in prompts], [running]
    longest = max(GAP, 2 * decode, decode + launch + token * 16)  # the least chunk is 16
    for number, step in enumerate(steps_of(scheduler, seconds)):
        if step.decoding and step.chunks:
            assert seconds(step) <= longest * (1 + 1e-9)
        if running in scheduler.rows:
            assert running in step.sequences, "a running request missed a step"
        if waiting and number % every == 0:
            added.append(waiting.pop(0))
            scheduler.add(added[-1])
    assert all(sequence.ended for sequence in added)


def test_prefill_takes_what_the_gap_allows() -> None:
    """Beside running requests the chunks double from the least to the most that fits, here 400 tokens of 0.1 each."""
    scheduler = scheduler_of(Pace(512, GAP))
    scheduler.add(sequence_of(1, 400))
    steps = steps_of(scheduler, lambda step: 10.0 + 0.1 * step.prompt_tokens)
    next(steps)
    scheduler.add(sequence_of(2000, 1))
    assert [next(steps).prompt_tokens for _ in range(8)] == [16, 32, 64, 128, 256, 359, 391, 398]


def test_prefill_gets_as_much_time_as_decoding() -> None:
    """If decoding takes more than half of the gap, here 40, steps with prompts take twice that."""
    scheduler = scheduler_of(Pace(512, GAP))
    scheduler.add(sequence_of(1, 400))
    steps = steps_of(scheduler, lambda step: 40.0 + 0.1 * step.prompt_tokens)
    next(steps), next(steps)
    scheduler.add(sequence_of(9000, 1))
    assert [next(steps).prompt_tokens for _ in range(20)][-1] == pytest.approx(400, abs=5)


def test_a_slow_device_makes_chunks_smaller() -> None:
    """A chunk that took too long is followed by a smaller one: in proportion, and never below the least."""
    pace = Pace(512, GAP)
    pace.record(0, 512, 1000.0)
    assert pace.tokens(0) == 512
    for _ in range(9):
        pace.record(1, pace.tokens(1), 1.0)
    assert pace.tokens(1) == 512
    pace.record(1, 100, 40.0)
    assert pace.tokens(1) == 512, "a partial chunk says nothing against the limit"
    pace.record(1, 512, 80.0)
    assert pace.tokens(1) == 320
    for _ in range(9):
        pace.record(1, pace.tokens(1), 1000.0)
    assert pace.tokens(1) == 16


def test_without_running_requests_prompts_are_taken_in_together() -> None:
    """Nobody waits for a token: the first step has a whole chunk, of several prompts."""
    scheduler = scheduler_of(Pace(512, GAP))
    for _ in range(5):
        scheduler.add(sequence_of(150, 3))
    step = next(steps_of(scheduler, lambda _: 1.0))
    assert [count for _, count in step.chunks] == [150, 150, 150, 62]


def test_the_gap_is_a_setting() -> None:
    """It has a range; by default it is 50 ms on a GPU, and there is none on the CPU."""
    default = engine_settings.EngineSettings().max_token_gap_ms
    assert [gap_of(default, device) for device in ("cuda", "cpu")] == [0.05, float("inf")]
    chosen = engine_settings.parse({"max_token_gap_ms": 20}).max_token_gap_ms
    assert [gap_of(chosen, device) for device in ("cuda", "cpu")] == [0.02, 0.02]
    with pytest.raises(ValueError, match="max_token_gap_ms is -1, not 0 to 60000"):
        engine_settings.parse({"max_token_gap_ms": -1})
