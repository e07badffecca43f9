"""What the engine keeps of requests that are gone: nothing, whichever way they ended."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.contract.engine_settings import EngineSettings
from service.engine import Delta, Finish, Grammar, Limits, Priority, Sampling, model_engine
from service.engine.core import Core
from service.engine.detokenizer import OutputProcessor
from service.engine.model_engine import ModelEngine
from service.engine.sampler import Sampler
from service.engine.sequence import Event, Sequence
from service.model.release import Release
from tests.batching_fixtures import CONTENTS, MAX_TOKENS, RequestFactory, one_thread, run

many = partial(settings, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])

SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=0, repetition_penalty=1.3),
    Sampling(temperature=0, frequency_penalty=0.6, presence_penalty=0.2),
    Sampling(temperature=1.0, seed=1, presence_penalty=0.5, logprobs=2),
]
DEADLINES = [{}, {"queue_deadline": 0.0}, {"max_seconds": 0.0}, {"max_seconds": 0.01}]  # none, in the queue, running

joins = st.tuples(
    st.integers(0, len(CONTENTS) - 1),
    st.integers(1, MAX_TOKENS),
    st.sampled_from(["interactive", "batch"]),
    st.sampled_from(SAMPLINGS),
    st.sampled_from(DEADLINES),
)
cancels = st.integers(0, 9)
faults = st.sampled_from(["forward", "sample", "output"])


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RequestFactory]:
    with one_thread():
        yield RequestFactory(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def alone(factory: RequestFactory) -> Callable[[int, Sampling], list[int]]:
    """The tokens of a request that runs alone."""

    @cache
    def tokens(number: int, sampling: Sampling) -> list[int]:
        core, request = factory.core(), factory.request(number, sampling=sampling)
        core.scheduler.add(request.sequence)
        run(core)
        return request.tokens

    return tokens


class Faults:
    """Makes the next forward pass, the next sampling (after its counts were read), or the next output fail."""

    def __init__(self, core: Core) -> None:
        self.pending = ""
        core._runner.forward = self._wrap("forward", core._runner.forward)  # type: ignore[method-assign]
        core._sampler._logprobs = self._wrap("sample", core._sampler._logprobs)  # type: ignore[method-assign]

    @contextmanager
    def patched(self) -> Iterator[None]:
        push = self._wrap("output", OutputProcessor.push)
        with patch.object(OutputProcessor, "push", lambda *arguments: push(*arguments)):
            yield

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self.pending == name:
                self.pending = ""
                raise RuntimeError(f"{name} fails")
            return function(*arguments)

        return call


@many(max_examples=80)
@given(
    moves=st.lists(st.one_of(joins, cancels, faults, st.none()), min_size=1, max_size=24),
    rows=st.integers(1, 4),
    lookahead=st.booleans(),
)
def test_nothing_is_left_of_a_request_that_is_gone(
    factory: RequestFactory, alone: Callable[[int, Sampling], list[int]], moves: list[Any], rows: int, lookahead: bool
) -> None:
    """Finished, cancelled, expired, preempted or failed: no reference is left, and no other request is disturbed."""
    core = factory.core(rows=rows, chunk=64, lookahead=lookahead)
    faults = Faults(core)
    sequences: list[weakref.ref[Sequence]] = []
    features: list[weakref.ref[Tensor]] = []
    outputs: list[tuple[int, Sampling, list[int], list[Event | str]]] = []

    def join(number: int, max_tokens: int, priority: Priority, sampling: Sampling, deadline: dict[str, float]) -> None:
        request = factory.request(number, max_tokens=max_tokens, sampling=sampling, priority=priority, **deadline)
        sequence = request.sequence
        events: list[Event | str] = []  # an exception would hold the frames that it passed
        sequence.emit = lambda event: events.append(repr(event) if isinstance(event, BaseException) else event)
        core.scheduler.add(sequence)
        outputs.append((number, sampling, request.tokens, events))
        sequences.append(weakref.ref(sequence))
        if sequence.features is not None:
            features.append(weakref.ref(sequence.features))

    def cancel(index: int) -> None:
        if sequences and (sequence := sequences[index % len(sequences)]()):
            sequence.cancelled = True

    with faults.patched(), patch("service.engine.core.log"):  # its records would hold tracebacks
        for move in moves:
            if isinstance(move, tuple):
                join(*move)
            elif isinstance(move, str):
                faults.pending = move
            elif move is not None:
                cancel(move)
            core.step()
        run(core)

    assert [one for one in sequences if one() is not None] == []
    assert [one for one in features if one() is not None] == []
    counts = core._sampler._counts._output
    assert counts is None or len(counts) <= 8
    for number, sampling, tokens, events in outputs:
        assert tokens == alone(number, sampling)[: len(tokens)]
        if events and isinstance(events[-1], Finish):
            assert events[-1].completion_tokens == len(tokens)


def test_a_step_that_fails_after_sampling_counts_no_token_twice(factory: RequestFactory) -> None:
    """The step is run again without the newest request, and the others' penalties are as if it had not failed."""
    sampling = Sampling(temperature=0, frequency_penalty=0.4)
    expected, request = (factory.request(0, sampling=sampling) for _ in range(2))
    core = factory.core()
    core.scheduler.add(expected.sequence)
    run(core)
    core = factory.core()
    core.scheduler.add(request.sequence)
    while not request.sequence.ended:
        core.step()
        newest = factory.request(1)
        core.scheduler.add(newest.sequence)
        with patch.object(Sampler, "_logprobs", side_effect=RuntimeError("out of memory")):
            core.step()
        assert isinstance(newest.end, RuntimeError)
    assert request.tokens == expected.tokens


class Tracked:
    """Weak references to what an engine must not hold: its sequences, and what each of them holds."""

    def __init__(self) -> None:
        self.references: list[weakref.ref[Any]] = []

    def create(self, *arguments: Any, **options: Any) -> Sequence:
        sequence = Sequence(*arguments, **options)
        held = (sequence, sequence.features, sequence.constraint)
        self.references += [weakref.ref(one) for one in held if one is not None]
        return sequence

    def require_gone(self) -> None:
        deadline = time.monotonic() + 2  # one may still be in preparation, or in the hands of the engine's thread
        while alive := [reference for reference in self.references if reference() is not None]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.01)
            gc.collect()


@pytest.fixture(scope="module")
def engine(factory: RequestFactory) -> Iterator[ModelEngine]:
    limits = Limits(max_prompt_tokens=200, max_wait=0.05, max_seconds=0.2)
    engine = ModelEngine(factory.checkpoint, EngineSettings(rows=2, kv_tokens=1200, image_cache_mib=1), limits)
    yield engine
    engine.close()


SCHEMA = Sampling(temperature=0, max_tokens=10, grammar=Grammar.of_document({"type": "object"}))
calls = st.tuples(
    st.integers(0, len(CONTENTS) - 1),
    st.sampled_from([*SAMPLINGS, SCHEMA]),
    st.sampled_from(["interactive", "batch"]),
    st.one_of(st.none(), st.floats(0, 0.05)),  # seconds until the client cancels
)


@many(max_examples=20)
@given(requests=st.lists(calls, min_size=1, max_size=8))
def test_an_idle_engine_holds_no_request(engine: ModelEngine, requests: list[Any]) -> None:
    """After any requests, cancelled or not, its threads, its mailbox and its vision encoder hold nothing of them."""
    tracked = Tracked()

    async def ask(number: int, sampling: Sampling, priority: Priority, seconds: float | None) -> None:
        messages = [{"role": "user", "content": CONTENTS[number]}]
        async with asyncio.timeout(seconds):
            async for _ in engine.stream(messages, sampling, priority=priority):
                pass

    async def scenario() -> None:
        await asyncio.gather(*(ask(*request) for request in requests), return_exceptions=True)
        while engine.usage().running or engine.usage().waiting or engine._busy:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    with patch.object(model_engine, "Sequence", tracked.create):
        asyncio.run(scenario())
    assert tracked.references or all(seconds is not None for *_, seconds in requests)
    tracked.require_gone()
    assert engine._dispatcher._pending == {}
    assert engine._inbox.empty()
    assert engine._vision._free >= 0


def test_an_idle_engine_holds_no_weights_that_it_was_given(factory: RequestFactory) -> None:
    """The weights that were read for a replacement are released when it is done."""

    class Weights(dict[str, Any]):
        pass

    engine = ModelEngine(factory.checkpoint, EngineSettings(rows=2, kv_tokens=1200), Limits())
    try:
        weights = Weights(engine.read_weights(_release(factory.path), lambda *_: None))
        tracked = Tracked()
        tracked.references.append(weakref.ref(weights))
        asyncio.run(engine.replace_weights(weights))
        del weights
        tracked.require_gone()
    finally:
        engine.close()


def test_a_closed_engine_holds_no_request(factory: RequestFactory) -> None:
    """Requests that run or wait when the engine is closed are failed and released."""
    tracked = Tracked()
    engine = ModelEngine(factory.checkpoint, EngineSettings(rows=1, kv_tokens=600), Limits())

    async def ask() -> list[Delta | Finish]:
        messages = [{"role": "user", "content": CONTENTS[5]}]
        return [item async for item in engine.stream(messages, Sampling(max_tokens=200, temperature=0))]

    async def scenario() -> list[Any]:
        tasks = [asyncio.create_task(ask()) for _ in range(3)]
        while len(tracked.references) < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.to_thread(engine.close)
        return await asyncio.gather(*tasks, return_exceptions=True)

    with patch.object(model_engine, "Sequence", tracked.create):
        assert [type(error) for error in asyncio.run(scenario())] == [RuntimeError] * 3
    tracked.require_gone()


def _release(model: Path) -> Release:
    return Release(model.parent, "1.0.0", EngineSettings(dtype="float32"), ())
