"""Replacing the weights of a running model, step by step as a controller orders it; without a service manager."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.chat.errors import ApiError
from service.chat.request import parse_document
from service.demo_models import tiny
from service.engine.protocol import Staged
from tests.test_app import picture
from tests.weight_swap_fixtures import NEW, OLD, STEPS, Worker, describe_release, until

SHORT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
LONG = SHORT | {"max_tokens": 250}
IMAGE = SHORT | {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": picture(60, 60)}}, {"type": "text", "text": "?"}],
        }
    ]
}


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of two releases, OLD and NEW."""
    root = tmp_path_factory.mktemp("root")
    for seed, version in enumerate((OLD, NEW), start=1):
        path = root / "releases" / version
        tiny.make(path / "model", seed=seed, dtype="float32")
        describe_release(path)
    return root / "releases"


@pytest.fixture
def run(releases: Path, tmp_path: Path) -> Callable[..., None]:
    """Runs a scenario with a worker that follows weights orders."""
    (tmp_path / "releases").symlink_to(releases)

    @asynccontextmanager
    async def following(**settings: Any) -> AsyncIterator[Worker]:
        worker = Worker(tmp_path, **settings)
        task = asyncio.create_task(worker.swapper.follow())
        try:
            yield worker
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            worker.engine.close()

    def run(scenario: Callable[[Worker], Coroutine[Any, Any, None]], **settings: Any) -> None:
        async def run_scenario() -> None:
            async with following(**settings) as worker:
                await asyncio.wait_for(scenario(worker), 60)

        asyncio.run(run_scenario())

    return run


def test_whole_swap_changes_answers_and_version(run: Callable[..., None]) -> None:
    """After the last step the new weights answer, and the ledger of the old version is kept apart."""

    async def scenario(worker: Worker) -> None:
        before = await worker.ask_in_turn(SHORT, IMAGE)
        worker.state.ledger.accepted = worker.state.ledger.completed = 5
        await worker.swap()
        after = await worker.ask_in_turn(SHORT, IMAGE)
        assert before[0] != after[0]
        assert before[1] != after[1]
        assert worker.identity.version == worker.state.version == NEW
        assert [(past.version, past.ledger.accepted) for past in worker.state.past] == [(OLD, 5)]
        assert worker.report["pause_ms"] > 0
        assert worker.report["error"] is None

    run(scenario)


def test_no_request_mixes_two_weight_sets(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests admitted before the swap are answered by the old weights alone, later ones by the new weights alone.

    Covered are requests in the engine's queue, with images, with several choices, and still being prepared.
    """

    async def scenario(worker: Worker) -> None:
        slow, proceed = SHORT | {"messages": [{"role": "user", "content": "slow"}]}, threading.Event()
        requests = [LONG, SHORT, IMAGE, LONG | {"n": 3}, slow]
        old = await worker.ask_in_turn(*requests)
        worker.order("prepare")
        await worker.until("prepared")
        build = worker.engine._prompt_builder.build

        def slow_build(messages: Any, *more: Any) -> Any:
            assert "slow" not in str(messages) or proceed.wait(30)
            return build(messages, *more)

        monkeypatch.setattr(worker.engine._prompt_builder, "build", slow_build)
        admitted = len(worker.admitted)
        before = [asyncio.create_task(worker.ask(document)) for document in requests]  # seven choices on two rows
        before.append(asyncio.create_task(worker.ask(LONG, "batch")))
        await until(lambda: len(worker.admitted) == admitted + len(before))
        worker.order("vacate")
        await until(lambda: worker.admission.paused)
        after = [asyncio.create_task(worker.ask(document)) for document in requests]
        await asyncio.gather(
            *(task for task, document in zip(before, [*requests, LONG], strict=True) if document is not slow)
        )
        await asyncio.sleep(0.05)
        assert worker.report["state"] == "prepared", "an admitted request has not reached the engine yet"
        proceed.set()
        await worker.until("vacated")
        worker.order("verify")
        await worker.until("passed")
        assert all(task.done() for task in before)
        assert not any(task.done() for task in after)
        worker.point(NEW)
        assert [await task for task in before] == [(OLD, text) for text in [*old, old[0]]]
        answers = [await task for task in after]
        assert {version for version, _ in answers} == {NEW}
        assert [text for _, text in answers] == await worker.ask_in_turn(*requests)
        assert all(new != text for (_, new), text in zip(answers, old, strict=True))

    run(scenario)


@pytest.mark.parametrize("state", ["prepared", "vacated", "passed"])
@pytest.mark.parametrize("how", ["step back", "controller dead"])
def test_swap_is_undone_before_the_rename(run: Callable[..., None], state: str, how: str) -> None:
    """At any step before the rename, `back` or the death of the controller restores the old weights.

    Requests that waited are answered by them.
    """
    dead = subprocess.Popen(["true"])
    dead.wait(10)

    async def scenario(worker: Worker) -> None:
        old = await worker.ask_in_turn(SHORT, IMAGE)
        for step, reached in STEPS:
            worker.order(step)
            await worker.until(reached)
            if reached == state:
                break
        waiting = asyncio.create_task(worker.ask(SHORT))
        if state == "prepared":
            await waiting
        await asyncio.sleep(0.05)
        assert waiting.done() == (state == "prepared")
        if how == "step back":
            worker.order("back")
        else:
            worker.order(step, controller=dead.pid, start_ticks=1)
        assert await worker.until("back", "failed") == "back", worker.report
        assert await waiting == (OLD, old[0])
        assert await worker.ask_in_turn(SHORT, IMAGE) == old
        assert (worker.identity.version, worker.state.past) == (OLD, [])

    run(scenario)


def test_new_weights_hold_when_the_controller_dies_after_the_rename(run: Callable[..., None]) -> None:
    """Once the slot's symlink leads to the new release, the swap is done, whether the controller is alive or not."""

    async def scenario(worker: Worker) -> None:
        for step, state in STEPS:
            worker.order(step)
            await worker.until(state)
        worker.point(NEW)
        worker.order("verify", controller=2**22 + 1, start_ticks=1)
        assert await worker.until("done", "back") == "done"
        assert (await worker.ask(SHORT))[0] == NEW

    run(scenario)


def test_failed_check_restores_the_old_weights(run: Callable[..., None], releases: Path) -> None:
    """No client is answered by weights that failed a check; the report has the check's failure."""

    async def scenario(worker: Worker) -> None:
        old = await worker.ask_in_turn(SHORT, IMAGE)
        worker.order("prepare")
        await worker.until("prepared")
        worker.order("vacate")
        await worker.until("vacated")
        waiting = asyncio.create_task(worker.ask(SHORT))
        worker.order("verify")
        assert await worker.until("failed", "passed") == "failed"
        assert "expected 'purple rain'" in worker.report["error"]
        assert await waiting == (OLD, old[0])
        assert await worker.ask_in_turn(SHORT, IMAGE) == old

    describe_release(releases / NEW, checks=[{"question": "What?", "answer": "purple rain"}])
    try:
        run(scenario)
    finally:
        describe_release(releases / NEW)


def test_waiting_requests_are_answered_after_the_time_limit(run: Callable[..., None]) -> None:
    """If the controller takes no further step, the old weights are restored when `seconds` of the order are over."""

    async def scenario(worker: Worker) -> None:
        worker.order("prepare", seconds=0.5)
        await worker.until("prepared")
        worker.order("vacate")
        await worker.until("vacated")
        waiting = asyncio.create_task(worker.ask(SHORT))
        worker.order("verify")
        assert await worker.until("failed") == "failed"
        assert "had waited" in worker.report["error"]
        assert (await waiting)[0] == OLD

    run(scenario)


def test_weights_that_cannot_be_read_change_nothing(run: Callable[..., None]) -> None:
    """A release that does not exist is reported as failed before any request has to wait."""

    async def scenario(worker: Worker) -> None:
        worker.order("prepare", after="9.9.9")
        assert await worker.until("failed") == "failed"
        assert "not a release" in worker.report["error"]
        assert worker.report["pause_ms"] is None
        assert (await worker.ask(SHORT))[0] == OLD

    run(scenario)


def test_requests_wait_for_the_copy_alone(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and staging come before the first request has to wait, and what was staged is freed after the last."""

    async def scenario(worker: Worker) -> None:
        events: list[tuple[str, bool]] = []
        engine = worker.engine

        def record(name: str) -> Callable[..., Any]:
            original = getattr(engine, name)

            def recorded(*arguments: Any) -> Any:
                events.append((name, worker.admission.paused))
                return original(*arguments)

            return recorded

        def stage(weights: Any, progress: Any) -> Staged:
            events.append(("stage_weights", worker.admission.paused))
            return Staged(weights, "device memory", lambda: events.append(("release", worker.admission.paused)))

        for name in ("read_weights", "replace_weights"):
            monkeypatch.setattr(engine, name, record(name))
        monkeypatch.setattr(engine, "stage_weights", stage)
        await worker.swap()
        assert events == [
            ("read_weights", False), ("read_weights", False), ("stage_weights", False), ("replace_weights", True),
            ("release", False),
        ]  # fmt: skip
        assert worker.report["staged"] == "device memory"

    run(scenario)


def test_weights_that_cannot_be_staged_change_nothing(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason, the order fails before any request has to wait, and the old weights serve."""

    async def scenario(worker: Worker) -> None:
        def fail(*_: object) -> None:
            raise OSError("no such device")

        before = await worker.ask(SHORT)
        monkeypatch.setattr(worker.engine, "stage_weights", fail)
        worker.order("prepare")
        assert await worker.until("prepared", "failed") == "failed"
        assert "no such device" in worker.report["error"]
        assert (worker.report["pause_ms"], worker.report["staged"]) == (None, None)
        assert await worker.ask(SHORT) == before

    run(scenario)


def test_worker_that_the_order_does_not_name_follows_after_the_decision(run: Callable[..., None]) -> None:
    """A worker that started during the swap takes no part in it, and uses the new weights once they hold."""

    async def scenario(worker: Worker) -> None:
        worker.order("prepare", workers=[1])
        await asyncio.sleep(0.1)
        assert worker.state.swap is None
        assert (await worker.ask(SHORT))[0] == OLD
        worker.point(NEW)
        await until(lambda: worker.identity.version == NEW)
        followed = await worker.ask(SHORT)
        assert followed[0] == NEW
        worker.order("back", id="2", before=NEW, after=OLD)
        await asyncio.sleep(0.1)
        assert await worker.ask(SHORT) == followed

    run(scenario)


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"id": 1}', '{"step": "done"}'])
def test_unreadable_order_is_ignored(run: Callable[..., None], garbage: str) -> None:
    """A file that cannot be parsed is ignored, and the next order is followed."""

    async def scenario(worker: Worker) -> None:
        worker.path.write_text(garbage)
        await asyncio.sleep(0.1)
        assert (await worker.ask(SHORT))[0] == OLD
        await worker.swap()
        assert (await worker.ask(SHORT))[0] == NEW

    run(scenario)


def test_requests_that_wait_for_admission_count_against_the_queue(run: Callable[..., None]) -> None:
    """Beyond max_queue requests are refused; a waiting request that is cancelled makes room for another."""

    async def scenario(worker: Worker) -> None:
        worker.admission.pause()
        waiting = [asyncio.create_task(worker.ask(SHORT)) for _ in range(2)]
        await until(lambda: worker.admission.waiting == 2)
        with pytest.raises(ApiError, match="queue is full"):
            await worker.ask(SHORT)
        waiting[0].cancel()
        await until(lambda: worker.admission.waiting == 1)
        last = asyncio.create_task(worker.ask(SHORT))
        await until(lambda: worker.admission.waiting == 2)
        worker.admission.resume()
        assert (await waiting[1])[0] == (await last)[0] == OLD
        assert worker.admission.pending == 0

    run(scenario, max_queue=2)


def test_unread_stream_does_not_delay_the_swap(run: Callable[..., None]) -> None:
    """A stream that the model has completed and its client has not read does not count as in flight."""

    async def scenario(worker: Worker) -> None:
        versions: list[str] = []
        events = worker.chat.stream_events(parse_document(LONG | {"stream": True}), "r", versions.append)
        first = await anext(events)
        await worker.swap()
        assert (await worker.ask(SHORT))[0] == NEW
        rest = [event async for event in events]
        assert versions == [OLD]
        assert all(f'"system_fingerprint":"{OLD}"'.encode() in event for event in [first, *rest[:-1]])
        assert rest[-1].endswith(b"data: [DONE]\n\n")

    run(scenario)


def test_requests_that_failed_or_were_cancelled_are_not_pending(run: Callable[..., None]) -> None:
    """A swap does not wait for requests that were refused, cancelled, or whose stream was closed."""

    async def scenario(worker: Worker) -> None:
        with pytest.raises(ApiError, match="tokens"):
            await worker.ask(SHORT | {"messages": [{"role": "user", "content": "long " * 5000}]})
        cancelled = asyncio.create_task(worker.ask(LONG | {"n": 4}))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        events = worker.chat.stream_events(parse_document(LONG | {"stream": True}), "r")
        await anext(events)
        await events.aclose()
        await worker.swap()
        assert worker.admission.pending == 0
        assert (await worker.ask(SHORT))[0] == NEW

    run(scenario)
