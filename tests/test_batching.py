"""Continuous batching: the output of a request does not depend on the rest of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.contract.engine_settings import EngineSettings
from service.engine import Finish, QueueTimeout, Sampling, memory
from service.engine.cache import Budget, SlotCache
from service.engine.memory import MemoryShare
from service.engine.runner import Runner
from service.engine.vision import VisionEncoder
from tests.batching_fixtures import CONTENTS, MAX_TOKENS, PAGES_OF_A_ROW, Request, RequestFactory, one_thread, run

many = partial(settings, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RequestFactory]:
    with one_thread():
        yield RequestFactory(tmp_path_factory.mktemp("model") / "model")


joins = st.tuples(
    st.integers(0, len(CONTENTS) - 1), st.integers(1, MAX_TOKENS), st.sampled_from(["interactive", "batch"])
)
moves = st.lists(st.one_of(joins, st.integers(0, 9), st.none()), min_size=1, max_size=24)


@many(max_examples=120)
@given(
    moves=moves,
    rows=st.integers(1, 5),
    chunk=st.sampled_from([1, 7, 16, 33, 64, 512]),
    cache=st.sampled_from([{}, {"pad": True}, {"pages": PAGES_OF_A_ROW}, {"pages": PAGES_OF_A_ROW + 6}]),
    lookahead=st.booleans(),
)
def test_every_schedule_gives_the_tokens_of_generate(
    factory: RequestFactory, moves: list[Any], rows: int, chunk: int, cache: dict[str, Any], lookahead: bool
) -> None:
    """The tokens equal those of generate for any arrivals, cancellations, chunk sizes, row moves and preemptions, with
    either cache, when there are too few pages for all rows, and when tokens are read after the next step was launched.
    """
    core = factory.core(rows=rows, chunk=chunk, lookahead=lookahead, **cache)
    requests: list[tuple[int, Request]] = []
    for move in moves:
        if isinstance(move, tuple):
            number, max_tokens, priority = move
            request = factory.request(number, max_tokens=max_tokens, priority=priority)
            requests.append((number, request))
            core.scheduler.add(request.sequence)
        elif move is not None and requests:
            requests[move % len(requests)][1].sequence.cancelled = True
        core.step()
    run(core)
    for number, request in requests:
        expected = factory.expected[number][: request.sequence.max_new_tokens]
        if request.sequence.cancelled:
            assert request.tokens == expected[: len(request.tokens)]
        else:
            assert request.tokens == expected
            assert request.end == Finish("length", request.sequence.prompt.length, len(expected))
    assert core.scheduler.rows == []
    assert core.scheduler.usage.kv_tokens == 0


@many(max_examples=60)
@given(
    others=st.lists(joins, max_size=5),
    after=st.integers(0, 6),
    top_k=st.sampled_from([0, 1, 2, 40, 200]),
    top_p=st.sampled_from([0.3, 0.8, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition=st.sampled_from([1.0, 1.3]),
    presence=st.sampled_from([0.0, 0.7]),
    frequency=st.sampled_from([0.0, -0.4]),
    logprobs=st.sampled_from([None, 2]),
    engine=st.sampled_from([{}, {"lookahead": True}, {"lookahead": True, "pages": 2 * PAGES_OF_A_ROW}]),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_a_seeded_output_does_not_depend_on_the_batch(
    factory: RequestFactory, others: list[Any], after: int, seed: int, repetition: float, presence: float,
    frequency: float, engine: dict[str, Any], **more: Any,
) -> None:  # fmt: skip
    """With a seed, a sampled output is the same alone and in a batch, for any parameters and arrivals of the others."""
    sampling = Sampling(
        temperature=1.2, seed=seed, repetition_penalty=repetition, presence_penalty=presence,
        frequency_penalty=frequency, **more,
    )  # fmt: skip
    alone, batched = (factory.request(2, sampling=sampling) for _ in range(2))
    core = factory.core(rows=1)
    core.scheduler.add(alone.sequence)
    run(core)
    core = factory.core(rows=4, chunk=32, **engine)
    for number, max_tokens, priority in others:
        other = Sampling(temperature=max_tokens / 10, top_k=number * 9, frequency_penalty=max_tokens % 2 / 2)
        core.scheduler.add(factory.request(number, max_tokens=max_tokens, sampling=other, priority=priority).sequence)
    for _ in range(after):
        core.step()
    core.scheduler.add(batched.sequence)
    run(core)
    assert batched.tokens == alone.tokens
    assert len(alone.tokens) == MAX_TOKENS


def test_interactive_requests_take_the_rows_of_batch_requests(factory: RequestFactory) -> None:
    """A batch request is preempted at once by an interactive one, and its tokens are the same as without preemption."""
    core = factory.core(rows=2)
    low = [factory.request(number, priority="batch") for number in (0, 5)]
    for request in low:
        core.scheduler.add(request.sequence)
    for _ in range(6):
        core.step()
    assert [len(request.tokens) for request in low] == [6, 6]
    high = [factory.request(number) for number in (1, 2, 6)]
    for request in high:
        core.scheduler.add(request.sequence)
    core.step()
    assert [len(request.tokens) for request in high] == [1, 1, 0]
    assert [request.sequence.row for request in low] == [-1, -1]
    finished: list[Request] = []
    while core.step():
        finished += [request for request in (*high, *low) if request.end and request not in finished]
    assert finished[:2] == high[:2]
    assert [request.tokens for request in low] == [factory.expected[0], factory.expected[5]]


def test_a_long_prompt_does_not_delay_running_requests(factory: RequestFactory) -> None:
    """During a prefill of many steps, every decoding request gets a token in each step."""
    core = factory.core(chunk=8)
    decoding = factory.request(0)
    core.scheduler.add(decoding.sequence)
    while not decoding.tokens:
        core.step()
    long = factory.request(4)
    core.scheduler.add(long.sequence)
    steps = -(-long.sequence.prompt.length // 8)
    assert steps > 10
    before = len(decoding.tokens)
    for count in range(1, steps):
        core.step()
        assert len(decoding.tokens) == min(before + count, MAX_TOKENS)
        assert long.tokens == []
    core.step()
    assert len(long.tokens) == 1


def test_a_cancelled_request_frees_its_row_within_two_steps(factory: RequestFactory) -> None:
    """A request cancelled in prefill, while decoding or while waiting has no row two steps later; the next one has."""
    core = factory.core(rows=2, chunk=8)
    requests = [factory.request(number) for number in (0, 4, 1, 2)]
    for request in requests:
        core.scheduler.add(request.sequence)
    for _ in range(6):
        core.step()
    assert [request.sequence.row for request in requests] == [0, 1, -1, -1]
    for request in requests[:3]:
        request.sequence.cancelled = True
    core.step()
    core.step()
    assert [request.sequence.row for request in requests] == [-1, -1, -1, 0]
    run(core)
    assert requests[3].tokens == factory.expected[2]
    assert all(request.end is None for request in requests[:3])


def test_a_failing_step_fails_one_request(factory: RequestFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a forward pass raises, the newest request fails and the others continue."""
    core = factory.core(rows=3)
    requests = [factory.request(number) for number in (0, 5)]
    for request in requests:
        core.scheduler.add(request.sequence)
    core.step()
    forward = Runner.forward
    faulty = factory.request(6)

    def fail(self: Runner, decoding: Any, chunks: Any) -> Any:
        if faulty.sequence in [*decoding, *(sequence for sequence, _ in chunks)]:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, decoding, chunks)

    monkeypatch.setattr(Runner, "forward", fail)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    core.scheduler.add(faulty.sequence)
    run(core)
    assert isinstance(faulty.end, torch.OutOfMemoryError)
    assert [request.tokens for request in requests] == [factory.expected[0], factory.expected[5]]


def test_a_request_whose_detokenizer_fails_fails_alone(
    factory: RequestFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception while a token is converted to text fails that request only."""
    core = factory.core()
    good, bad = factory.request(0), factory.request(1)
    monkeypatch.setattr(bad.sequence.output, "push", lambda *_: 1 / 0)
    for request in (good, bad):
        core.scheduler.add(request.sequence)
    run(core)
    assert isinstance(bad.end, ZeroDivisionError)
    assert good.tokens == factory.expected[0]


def test_waiting_and_running_times_are_limited(factory: RequestFactory) -> None:
    """A request that waits too long fails, one that runs too long is cut; batch requests wait without limit."""
    core = factory.core(rows=1)
    running, patient = factory.request(0, max_seconds=0.05, max_tokens=150), factory.request(1, priority="batch")
    late = factory.request(2, queue_deadline=0.0)
    for request in (running, late, patient):
        core.scheduler.add(request.sequence)
    core.step()
    assert isinstance(late.end, QueueTimeout)
    run(core)
    assert isinstance(running.end, Finish)
    assert running.end.reason == "length"
    assert 0 < len(running.tokens) < 150
    assert patient.tokens == factory.expected[1]


def test_steps_and_waits_are_counted(factory: RequestFactory) -> None:
    """The metrics divide the sequences of all steps by the steps; a request waited until it first had a row."""
    core = factory.core(rows=2, chunk=512, lookahead=False)
    requests = [factory.request(number, max_tokens=3) for number in (0, 1, 2)]
    for request in requests:
        core.scheduler.add(request.sequence)
    run(core)
    assert (core.scheduler.usage.steps, core.scheduler.usage.step_sequences) == (6, 9)
    waits = [request.sequence.waited for request in requests]
    assert 0 <= waits[1] < waits[2]
    assert [request.end.waited for request in requests if isinstance(request.end, Finish)] == waits


def test_equal_images_are_encoded_once(factory: RequestFactory) -> None:
    """The features of an image are computed once, and again only after the bounded cache has evicted them."""
    model = factory.checkpoint.model
    red, blue = (factory.prompts[number].images for number in (5, 6))
    size = 4 * model.config.text_config.hidden_size * max(red[0].tokens, blue[0].tokens)
    vision = VisionEncoder(model, cache_bytes=size)
    first, again = vision.features(red), vision.features(factory.prompt(CONTENTS[8]).images)
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    assert (vision.computed, vision.reused) == (1, 1)
    vision.features(blue)
    vision.features(red)
    assert vision.computed == 3
    assert vision.features(()) is None
    small = VisionEncoder(model, cache_bytes=size // 4)
    small.features(red)
    small.features(red)
    assert small.computed == 2


def test_the_budget_never_exceeds_the_memory(factory: RequestFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows times columns stay within kv_tokens or the free memory; a budget too small for one request is refused."""
    model, engine = factory.checkpoint.model, EngineSettings()
    for rows, tokens in ((64, 20_000), (8, 1000), (1, 300), (1024, 100_000)):
        budget = Budget.of(tokens, rows=rows, context=131_072)
        assert budget.rows * budget.columns <= tokens
        assert budget.columns >= 256
    assert Budget.of(10**9, rows=4, context=4096) == Budget(4, 4096)
    with pytest.raises(ValueError, match="needs at least 256"):
        Budget.of(100, rows=4, context=4096)
    monkeypatch.setattr(memory, "memory_of", lambda _device: (1 << 30, 100 << 20))
    tokens = memory.cache_tokens(memory.copy_of(model, engine), model.device, MemoryShare())
    cache = SlotCache(model, Budget.of(tokens, rows=4, context=10**9))
    assert 0.9 * 25 < sum(slab.nbytes for slab in [*cache._keys, *cache._values]) / (1 << 20) <= 25


def test_cache_memory_is_allocated_on_use(factory: RequestFactory) -> None:
    """A cache of half a gigabyte whose rows hold one token each is hardly resident."""
    process = psutil.Process()
    before = process.memory_info().rss
    cache = SlotCache(factory.checkpoint.model, Budget(64, 16_384))
    assert sum(slab.nbytes for slab in [*cache._keys, *cache._values]) >= 1 << 29
    for slab in [*cache._keys, *cache._values]:
        slab[:, :, 0] = 1
    assert process.memory_info().rss - before < 50 << 20
    assert not cache._keys[0][5, 1, 100:110].any()
