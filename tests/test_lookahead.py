"""A step that is launched before the tokens of the one before are read. Whole schedules are in test_batching.py."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from service.engine import Finish, Sampling
from service.engine.core import Core
from service.engine.pace import Pace
from tests.batching_fixtures import PAGES_OF_A_ROW, Request, RequestFactory, one_thread, run


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RequestFactory]:
    with one_thread():
        yield RequestFactory(tmp_path_factory.mktemp("model") / "model")


def known_tokens(core: Core, *requests: Request) -> list[list[int]]:
    """Run; return for each step how many tokens of each request the host knew when it launched the step."""
    known = []
    forward = core._runner.forward

    def record(decoding: Any, chunks: Any) -> Any:
        known.append([len(request.tokens) for request in requests])
        return forward(decoding, chunks)

    core._runner.forward = record  # type: ignore[method-assign]
    for request in requests:
        core.scheduler.add(request.sequence)
    run(core)
    return known


@pytest.mark.parametrize("cache", [{}, {"pages": 2 * PAGES_OF_A_ROW}])
def test_a_step_is_launched_before_the_last_tokens_are_read(factory: RequestFactory, cache: dict[str, Any]) -> None:
    """The host lags one token behind; no step is launched for requests that have all their tokens."""
    request = factory.request(4, max_tokens=4)
    core = factory.core(lookahead=True, **cache)
    assert known_tokens(core, request) == [[0], [0], [1], [2]]
    assert request.tokens == factory.expected[4][:4]
    assert request.end == Finish("length", request.sequence.prompt.length, 4)
    assert core.scheduler.usage.running == core.scheduler.usage.kv_tokens == 0
    assert known_tokens(factory.core(**cache), request := factory.request(4, max_tokens=4)) == [[0], [1], [2], [3]]
    assert request.tokens == factory.expected[4][:4]


def test_a_token_after_the_end_is_dropped(factory: RequestFactory) -> None:
    """A request that ends beside one that goes on is in one step more, and has no more tokens or events for it."""
    short, long = factory.request(0, max_tokens=2), factory.request(1, max_tokens=5)
    known_tokens(factory.core(lookahead=True), short, long)
    assert [short.tokens, long.tokens] == [factory.expected[0][:2], factory.expected[1][:5]]
    assert [isinstance(event, Finish) for event in short.events].count(True) == 1


def test_an_idle_engine_holds_no_step(factory: RequestFactory) -> None:
    """When nothing runs or waits, the step that was launched for nothing is forgotten, with its requests."""
    core = factory.core(lookahead=True)
    sequence = factory.request(0, max_tokens=3).sequence
    sequence.emit = lambda _: None
    core.scheduler.add(sequence)
    gone = weakref.ref(sequence)
    del sequence
    while core.scheduler.busy:
        core.step()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0, frequency_penalty=0.5), Sampling(temperature=0, logprobs=1)]
)
def test_a_request_whose_next_token_depends_on_the_last_is_not_run_ahead(
    factory: RequestFactory, sampling: Sampling
) -> None:
    """Beside it no request is, and its tokens are those that it gets alone; when it has ended, the others are again."""
    alone = factory.request(1, max_tokens=3, sampling=sampling)
    known_tokens(factory.core(), alone)
    bound, free = factory.request(1, max_tokens=3, sampling=sampling), factory.request(0, max_tokens=6)
    known = known_tokens(factory.core(lookahead=True), bound, free)
    assert known == [[0, 0], [1, 1], [2, 2], [3, 3], [3, 3], [3, 4]]
    assert [bound.tokens, free.tokens] == [alone.tokens, factory.expected[0][:6]]


def test_a_request_that_ends_in_the_queue_is_not_restored(factory: RequestFactory) -> None:
    """Its last token is read after it was preempted: it is complete, and no row is spent on it again."""
    core = factory.core(rows=1, lookahead=True)
    low, high = factory.request(1, max_tokens=3, priority="batch"), factory.request(0, max_tokens=2)
    core.scheduler.add(low.sequence)
    for _ in range(3):
        core.step()
    assert (len(low.tokens), low.sequence.unread) == (2, 1)
    core.scheduler.add(high.sequence)
    core.step()
    assert (low.sequence.row, low.tokens) == (-1, factory.expected[1][:3])
    assert isinstance(low.end, Finish)
    computed = []
    forward = core._runner.forward

    def record(decoding: Any, chunks: Any) -> Any:
        computed.extend([*decoding, *(sequence for sequence, _ in chunks)])
        return forward(decoding, chunks)

    core._runner.forward = record  # type: ignore[method-assign]
    run(core)
    assert low.sequence not in computed
    assert high.tokens == factory.expected[0][:2]
    assert not core.scheduler.busy


def test_a_request_is_not_restored_before_its_last_token_is_read(factory: RequestFactory) -> None:
    """The token belongs to what is computed again."""
    scheduler = factory.core(lookahead=True).scheduler
    sequence = factory.request(0).sequence
    sequence.unread = 1
    scheduler.add(sequence)
    assert scheduler.schedule() is None
    sequence.unread = 0
    step = scheduler.schedule()
    assert step is not None
    assert step.sequences == [sequence]


def test_the_pace_is_told_the_time_between_two_readings(factory: RequestFactory) -> None:
    """That is the wait of a running request, whether or not steps overlap."""
    clock = 0.0
    pace = Pace(64, max_gap=50.0)
    core = Core(factory.core()._runner, lambda _: b"", pace=pace, lookahead=True, clock=lambda: clock)
    read, recorded = core._read, []
    pace.record = lambda *arguments: recorded.append(arguments)  # type: ignore[method-assign]

    def slow_read(launched: Any) -> None:
        nonlocal clock
        clock += 10.0 if launched else 0.0
        read(launched)

    core._read = slow_read  # type: ignore[method-assign]
    request = factory.request(0, max_tokens=3)
    core.scheduler.add(request.sequence)
    run(core)
    assert recorded == [(0, request.sequence.prompt.length, 10.0), (1, 0, 10.0), (1, 0, 10.0)]
