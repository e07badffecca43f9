"""Other weights in a worker, step by step as the controller orders them: a real model, and no service manager."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.chat.admission import Admission
from service.chat.errors import ApiError
from service.chat.request import parse_document
from service.chat.service import ChatService
from service.contract.processes import start_ticks
from service.contract.weights_order import WeightsOrderFile
from service.contract.worker_state import WorkerState, WorkerStateFile
from service.demo_models import tiny
from service.engine import Delta, Finish
from service.engine.model_engine import Limits, ModelEngine
from service.identity import Identity
from service.model.release import Release
from service.process.weight_swap import WeightSwapper
from service.settings import Settings
from tests.test_app import FakeEngine, picture

OLD, NEW = "1.0.0", "1.1.0"
SHORT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
LONG = SHORT | {"max_tokens": 250}
SEES = SHORT | {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": picture(60, 60)}}, {"type": "text", "text": "?"}],
        }
    ]
}


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two releases as a root holds them."""
    root = tmp_path_factory.mktemp("root")
    for seed, version in enumerate((OLD, NEW), start=1):
        path = root / "releases" / version
        tiny.make(path / "model", seed=seed, dtype="float32")
        _describe(path)
    return root / "releases"


def _describe(path: Path, **more: Any) -> None:
    engine = {"rows": 2, "kv_tokens": 2048}
    (path / "release.json").write_text(json.dumps({"version": path.name, "engine": engine} | more))


class Worker:
    """One worker of blue without a socket: what it is asked, what it is ordered, and what it says of itself."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.path = root, root / "weights_order.json"
        (root / "blue").symlink_to(f"releases/{OLD}")
        limits = Limits(prompt_tokens=600, stall=30)
        release = Release.read(root / "releases" / OLD)
        self.engine = ModelEngine.load(release, threads=1, limits=limits, progress=lambda *_: None)
        self.identity = Identity(OLD, "blue", 1)
        self.admission = Admission(self.identity)
        self.state = WorkerState.of_this_process(slot="blue", generation=1, version=OLD)
        state_file = WorkerStateFile(root / "1.json", self.state)
        self.chat = ChatService(self.engine, self.identity, Settings(slot="blue", **settings), self.admission)
        self.swapper = WeightSwapper(
            self.engine, self.admission, self.identity, state_file, WeightsOrderFile(root, "blue", root)
        )
        self.given: dict[str, Any] = {}
        self.passed: list[str] = []  # the versions that requests were told

    def order(self, step: str, **more: Any) -> None:
        """As the controller, which is this process unless it is said otherwise."""
        own = os.getpid()
        self.given = {
            "id": "1", "before": OLD, "after": NEW, "workers": [own], "controller": own,
            "start_ticks": start_ticks(own), "seconds": 60.0, **self.given, "step": step, **more,
        }  # fmt: skip
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.given))
        temporary.replace(self.path)

    def point(self, version: str) -> None:
        """Rename the slot's symlink."""
        (self.root / ".new").symlink_to(f"releases/{version}")
        (self.root / ".new").rename(self.root / "blue")

    def go_live(self) -> None:
        self.point(NEW)

    async def until(self, *states: str) -> str:
        """Wait until the worker's state file says one of these."""
        deadline = time.monotonic() + 30
        while (state := self.said.get("state")) not in states:
            assert time.monotonic() < deadline, self.said
            await asyncio.sleep(0.005)
        return str(state)

    @property
    def said(self) -> dict[str, Any]:
        """What the state file says of the change."""
        return json.loads((self.root / "1.json").read_text())["swap"] or {} if self.state.swap else {}

    async def ask(self, document: dict[str, Any], priority: Any = "interactive") -> tuple[str, str]:
        """The version that answered, and all that it said."""
        answer = await self.chat.create_completion(parse_document(document), priority, self.passed.append)
        return answer["system_fingerprint"], " | ".join(str(one["message"]["content"]) for one in answer["choices"])

    async def change(self) -> None:
        """A whole change, with nothing in its way."""
        for step, state in (("prepare", "prepared"), ("vacate", "vacated"), ("verify", "passed")):
            self.order(step)
            assert await self.until(state, "failed") == state, self.said
        self.go_live()
        await self.until("done")
        self.order("done")


@pytest.fixture
def run(releases: Path, tmp_path: Path) -> Callable[..., None]:
    """Runs a scenario with a worker that follows orders."""
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
        async def whole() -> None:
            async with following(**settings) as worker:
                await asyncio.wait_for(scenario(worker), 60)

        asyncio.run(whole())

    return run


async def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def _alone(worker: Worker, *documents: dict[str, Any]) -> list[str]:
    return [(await worker.ask(document))[1] for document in documents]


def test_a_change_step_by_step(run: Callable[..., None]) -> None:
    """Prepared, vacated, passed, done: the version changes with the last of them, and the counts are kept apart."""

    async def scenario(worker: Worker) -> None:
        before = await _alone(worker, SHORT, SEES)
        worker.state.ledger.accepted = worker.state.ledger.completed = 5
        await worker.change()
        after = await _alone(worker, SHORT, SEES)
        assert before[0] != after[0]
        assert before[1] != after[1]
        assert worker.identity.version == worker.state.version == NEW
        assert [(one.version, one.ledger.accepted) for one in worker.state.past] == [(OLD, 5)]
        assert worker.said["pause_ms"] > 0
        assert worker.said["error"] is None

    run(scenario)


def test_nobody_is_answered_by_two_models(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever passed before is answered by the old weights, whole: in the queue too, with pictures, all of `n`."""

    async def scenario(worker: Worker) -> None:
        slow, go_on = SHORT | {"messages": [{"role": "user", "content": "slow"}]}, threading.Event()
        asked = [LONG, SHORT, SEES, LONG | {"n": 3}, slow]
        old = await _alone(worker, *asked)
        worker.order("prepare")
        await worker.until("prepared")
        write = worker.engine._writer.write

        def slowly(messages: Any, *more: Any) -> Any:
            assert "slow" not in str(messages) or go_on.wait(30)
            return write(messages, *more)

        monkeypatch.setattr(worker.engine._writer, "write", slowly)
        early = [asyncio.create_task(worker.ask(document)) for document in asked]  # two rows for seven answers
        early.append(asyncio.create_task(worker.ask(LONG, "batch")))
        had = len(worker.passed)
        await _until(lambda: len(worker.passed) == had + len(early))
        worker.order("vacate")
        await _until(lambda: worker.admission.paused)
        late = [asyncio.create_task(worker.ask(document)) for document in asked]
        await asyncio.gather(
            *(one for one, document in zip(early, [*asked, LONG], strict=True) if document is not slow)
        )
        await asyncio.sleep(0.05)
        assert worker.said["state"] == "prepared", "one has passed, and the engine does not know of it yet"
        go_on.set()
        await worker.until("vacated")
        worker.order("verify")
        await worker.until("passed")
        assert all(one.done() for one in early)
        assert not any(one.done() for one in late)
        worker.go_live()
        assert [await one for one in early] == [(OLD, text) for text in [*old, old[0]]]
        answers = [await one for one in late]
        assert {version for version, _ in answers} == {NEW}
        assert [text for _, text in answers] == await _alone(worker, *asked)
        assert all(new != said for (_, new), said in zip(answers, old, strict=True))

    run(scenario)


@pytest.mark.parametrize("state", ["prepared", "vacated", "passed"])
@pytest.mark.parametrize("how", ["the controller says so", "the controller is dead"])
def test_before_the_rename_it_goes_back(run: Callable[..., None], state: str, how: str) -> None:
    """Called off, or with a controller that died, at any step: the old weights answer, and who waited is answered."""
    dead = subprocess.Popen(["true"])
    dead.wait(10)

    async def scenario(worker: Worker) -> None:
        old = await _alone(worker, SHORT, SEES)
        for step, reached in (("prepare", "prepared"), ("vacate", "vacated"), ("verify", "passed")):
            worker.order(step)
            await worker.until(reached)
            if reached == state:
                break
        waiting = asyncio.create_task(worker.ask(SHORT))
        if state == "prepared":
            await waiting
        await asyncio.sleep(0.05)
        assert waiting.done() == (state == "prepared")
        if how == "the controller says so":
            worker.order("back")
        else:
            worker.order(step, controller=dead.pid, start_ticks=1)
        assert await worker.until("back", "failed") == "back", worker.said
        assert await waiting == (OLD, old[0])
        assert await _alone(worker, SHORT, SEES) == old
        assert (worker.identity.version, worker.state.past) == (OLD, [])

    run(scenario)


def test_after_the_rename_the_death_of_the_controller_changes_nothing(run: Callable[..., None]) -> None:
    """The rename may have been its last deed: the new weights hold."""

    async def scenario(worker: Worker) -> None:
        for step, state in (("prepare", "prepared"), ("vacate", "vacated"), ("verify", "passed")):
            worker.order(step)
            await worker.until(state)
        worker.go_live()
        worker.order("verify", controller=2**22 + 1, start_ticks=1)
        assert await worker.until("done", "back") == "done"
        assert (await worker.ask(SHORT))[0] == NEW

    run(scenario)


def test_checks_that_fail_put_the_old_weights_back(run: Callable[..., None], releases: Path) -> None:
    """No client meets weights that failed: the worker goes back by itself, and says which check it was."""

    async def scenario(worker: Worker) -> None:
        old = await _alone(worker, SHORT, SEES)
        worker.order("prepare")
        await worker.until("prepared")
        worker.order("vacate")
        await worker.until("vacated")
        waiting = asyncio.create_task(worker.ask(SHORT))
        worker.order("verify")
        assert await worker.until("failed", "passed") == "failed"
        assert "expected 'purple rain'" in worker.said["error"]
        assert await waiting == (OLD, old[0])
        assert await _alone(worker, SHORT, SEES) == old

    _describe(releases / NEW, checks=[{"question": "What?", "answer": "purple rain"}])
    try:
        run(scenario)
    finally:
        _describe(releases / NEW)


def test_requests_do_not_wait_for_ever(run: Callable[..., None]) -> None:
    """A controller that lives and says nothing more: after the time that the order allows, all goes on as before."""

    async def scenario(worker: Worker) -> None:
        worker.order("prepare", seconds=0.5)
        await worker.until("prepared")
        worker.order("vacate")
        await worker.until("vacated")
        waiting = asyncio.create_task(worker.ask(SHORT))
        worker.order("verify")
        assert await worker.until("failed") == "failed"
        assert "had waited" in worker.said["error"]
        assert (await waiting)[0] == OLD

    run(scenario)


def test_weights_that_cannot_be_read_change_nothing(run: Callable[..., None]) -> None:
    """A release that is not there: the worker says so before anybody has to wait."""

    async def scenario(worker: Worker) -> None:
        worker.order("prepare", after="9.9.9")
        assert await worker.until("failed") == "failed"
        assert "not a release" in worker.said["error"]
        assert worker.said["pause_ms"] is None
        assert (await worker.ask(SHORT))[0] == OLD

    run(scenario)


def test_an_order_is_for_those_it_names(run: Callable[..., None]) -> None:
    """A worker that was born meanwhile does not take part; when all is decided it follows by itself."""

    async def scenario(worker: Worker) -> None:
        worker.order("prepare", workers=[1])
        await asyncio.sleep(0.1)
        assert worker.state.swap is None
        assert (await worker.ask(SHORT))[0] == OLD
        worker.go_live()
        await _until(lambda: worker.identity.version == NEW)
        followed = await worker.ask(SHORT)
        assert followed[0] == NEW
        worker.order("back", id="2", before=NEW, after=OLD)  # called off: nothing happens
        await asyncio.sleep(0.1)
        assert await worker.ask(SHORT) == followed

    run(scenario)


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"id": 1}', '{"step": "done"}'])
def test_what_makes_no_sense_is_no_order(run: Callable[..., None], garbage: str) -> None:
    """A file that cannot be understood is passed over, and the next one is followed."""

    async def scenario(worker: Worker) -> None:
        worker.path.write_text(garbage)
        await asyncio.sleep(0.1)
        assert (await worker.ask(SHORT))[0] == OLD
        await worker.change()
        assert (await worker.ask(SHORT))[0] == NEW

    run(scenario)


def test_who_waits_counts_against_the_queue_and_may_leave(run: Callable[..., None]) -> None:
    """Before the admission as in the engine's queue: too many are told to come again, who leaves makes room."""

    async def scenario(worker: Worker) -> None:
        worker.admission.pause()
        waiting = [asyncio.create_task(worker.ask(SHORT)) for _ in range(2)]
        await _until(lambda: worker.admission.waiting == 2)
        with pytest.raises(ApiError, match="queue is full"):
            await worker.ask(SHORT)
        waiting[0].cancel()
        await _until(lambda: worker.admission.waiting == 1)
        last = asyncio.create_task(worker.ask(SHORT))
        await _until(lambda: worker.admission.waiting == 2)
        worker.admission.resume()
        assert (await waiting[1])[0] == (await last)[0] == OLD
        assert worker.admission.pending == 0

    run(scenario, max_queue=2)


def test_a_reader_who_is_slow_holds_nobody_up(run: Callable[..., None]) -> None:
    """A stream that its client does not read has been answered as far as the model is concerned."""

    async def scenario(worker: Worker) -> None:
        told: list[str] = []
        events = worker.chat.stream_events(parse_document(LONG | {"stream": True}), "r", told.append)
        first = await anext(events)
        await worker.change()
        assert (await worker.ask(SHORT))[0] == NEW
        rest = [event async for event in events]
        assert told == [OLD]
        assert all(f'"system_fingerprint":"{OLD}"'.encode() in event for event in [first, *rest[:-1]])
        assert rest[-1].endswith(b"data: [DONE]\n\n")

    run(scenario)


def test_a_request_that_fails_is_no_longer_pending(run: Callable[..., None]) -> None:
    """What is refused, and who leaves in the middle, is under way no more: the next change does not wait for it."""

    async def scenario(worker: Worker) -> None:
        with pytest.raises(ApiError, match="tokens"):
            await worker.ask(SHORT | {"messages": [{"role": "user", "content": "long " * 5000}]})
        leaving = asyncio.create_task(worker.ask(LONG | {"n": 4}))
        await asyncio.sleep(0.1)
        leaving.cancel()
        events = worker.chat.stream_events(parse_document(LONG | {"stream": True}), "r")
        await anext(events)
        await events.aclose()
        await worker.change()
        assert worker.admission.pending == 0
        assert (await worker.ask(SHORT))[0] == NEW

    run(scenario)


def test_who_waited_counts_for_the_version_that_answered() -> None:
    """A request that met one version and waited for the other is that other one's, in its header and in the metrics."""
    who = Identity(f"old-{uuid.uuid4().hex}", "green", 1)
    met, later = who.version, f"new-{uuid.uuid4().hex}"

    class Changing(Admission):
        def admit(self, answers: int) -> Any:
            who.version = later
            return super().admit(answers)

    http = TestClient(
        create_app(FakeEngine(), who, Settings(slot="green"), serving=lambda: True, admission=Changing(who))
    )
    answer = http.post("/v1/chat/completions", json=SHORT)
    assert answer.headers["x-model-version"] == answer.json()["system_fingerprint"] == later
    text = http.get("/metrics").text
    counted = 'glm_requests_total{route="/v1/chat/completions",slot="green",status="200",version='
    assert f'{counted}"{later}"}} 1.0' in text
    assert f'{counted}"{met}"}}' not in text
    assert f'glm_requests_in_flight{{slot="green",version="{met}"}} 0.0' in text
    assert f'glm_requests_in_flight{{slot="green",version="{later}"}} 1.0' in text, "the scrape itself"


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_names_the_weights_that_answered(stream: bool) -> None:
    """Header, body and metrics say the version that the request met at the admission, whatever came meanwhile."""
    who = Identity(f"old-{uuid.uuid4().hex}", "green", 1)
    met, later = who.version, f"new-{uuid.uuid4().hex}"

    class Turning(FakeEngine):
        async def stream(self, *args: Any, **options: Any) -> AsyncIterator[Delta | Finish]:
            who.version = later
            async for item in super().stream(*args, **options):
                yield item

    http = TestClient(create_app(Turning(), who, Settings(slot="green"), serving=lambda: True))
    answer = http.post("/v1/chat/completions", json=SHORT | {"stream": stream})
    assert answer.headers["x-model-version"] == met
    assert answer.text.count(f'"system_fingerprint":"{met}"') == (5 if stream else 1)
    assert later not in answer.text
    assert http.get("/version").headers["x-model-version"] == http.get("/version").json()["version"] == later
    assert http.get("/openapi.json").json()["info"]["version"] == later
    text = http.get("/metrics").text
    counted = 'glm_requests_total{route="/v1/chat/completions",slot="green",status="200",version='
    assert f'{counted}"{met}"}} 1.0' in text
    assert f'{counted}"{later}"}}' not in text
    assert f'glm_requests_in_flight{{slot="green",version="{met}"}} 0.0' in text
    assert f'glm_generated_tokens_total{{slot="green",version="{met}"}} 3.0' in text
