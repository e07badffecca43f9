"""Streams that are silent for long: their heads come soon, and comments keep proxies from closing them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.api import sse
from service.api.sse import HEAD_DELAY, EventStream
from service.app import create_app
from service.chat.admission import Admission
from service.contract.samples import new_samples
from service.engine import Delta, Finish, QueueTimeout, Refused
from service.identity import Identity
from service.settings import Settings
from service.timing import KEEP_ALIVE_COMMENT, ResponseTimer
from tests.server_fixtures import App, running_host, until
from tests.test_app import CHAT, HELLO, FakeEngine, events, scope, settings
from tests.virtual_time import run

SILENCE = 10.0  # seconds
NEVER = 1e6
gaps = st.lists(st.sampled_from((0.0, 0.1, HEAD_DELAY, 3.0, SILENCE, 25.0, 31.7)), min_size=1, max_size=6)


@dataclass
class Exchange:
    """An EventStream whose events come after these gaps, and what it sends, each with its second."""

    gaps: list[float]
    error: Exception | None = None  # raised in the place of the first event
    slow: float = 0.0  # seconds that the client takes to read each message
    sent: list[tuple[float, Message]] = field(default_factory=list)
    is_closed: bool = False
    gave_back: float = -1.0

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            for number, gap in enumerate(self.gaps):
                await asyncio.sleep(gap)
                if self.error:
                    raise self.error
                yield b"data: %d\n\n" % number
        finally:
            self.is_closed = True

    async def answer(self, disconnect: float = NEVER, max_silence: float | None = SILENCE) -> None:
        """Send the whole response, unless the client disconnects before; no task is left."""
        now, tasks = asyncio.get_running_loop().time, asyncio.all_tasks()

        async def receive() -> Message:
            await asyncio.sleep(disconnect)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            await asyncio.sleep(self.slow)
            self.sent.append((now(), message))

        holdings = ExitStack()
        holdings.callback(lambda: setattr(self, "gave_back", now()))
        stream = EventStream(
            self._events(), lambda error: b"%r" % error, max_silence=max_silence, before_first=holdings
        )
        try:
            await stream({}, receive, send)
        finally:
            assert asyncio.all_tasks() == tasks
            assert self.is_closed or not self.sent

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for _, message in self.sent[1:]]


@given(gaps, st.sampled_from((0.0, 2.0)))
def test_silence_is_filled_with_comments_and_events_stay_whole(gaps: list[float], slow: float) -> None:
    """Whenever the events come: without the comments the stream is that without keep-alive, event by event."""
    exchange, plain = Exchange(gaps, slow=slow), Exchange(gaps, slow=slow)
    run(exchange.answer())
    run(plain.answer(max_silence=None))
    assert [body for body in exchange.bodies if body != KEEP_ALIVE_COMMENT] == plain.bodies
    assert plain.bodies == [b"data: %d\n\n" % number for number in range(len(gaps))] + [b""]
    assert [message.get("more_body") for _, message in exchange.sent] == [
        None,
        *[True] * (len(exchange.sent) - 2),
        False,
    ]
    assert exchange.sent[0][0] == pytest.approx(min(gaps[0], HEAD_DELAY) + slow)
    assert plain.sent[0][0] == pytest.approx(gaps[0] + slow)
    for (before, _), (at, message) in zip(exchange.sent, exchange.sent[1:], strict=False):
        assert at - before <= SILENCE + slow + 1e-6
        if message["body"] == KEEP_ALIVE_COMMENT:
            assert at - before == pytest.approx(SILENCE + slow)


@given(gaps, st.floats(0, 80), st.booleans(), st.sampled_from((0.0, 2.0)))
def test_a_client_that_leaves_ends_everything(gaps: list[float], at: float, cancelled: bool, slow: float) -> None:
    """Whenever the client disconnects, or the server cancels: no task is left, and the generator is closed."""

    async def scenario() -> None:
        task = asyncio.create_task(exchange.answer(NEVER if cancelled else at))
        if cancelled:
            await asyncio.sleep(at)
            task.cancel()
        [error] = await asyncio.gather(task, return_exceptions=True)
        assert error is None or isinstance(error, ClientDisconnect | asyncio.CancelledError), error
        assert asyncio.all_tasks() == {asyncio.current_task()}

    exchange = Exchange(gaps, slow=slow)
    run(scenario())
    assert exchange.gave_back >= 0


@pytest.mark.parametrize("waited", [HEAD_DELAY / 2, HEAD_DELAY * 2, 3 * SILENCE])
@pytest.mark.parametrize("slow", [0.0, 2.0])
def test_an_error_before_the_head_is_raised_and_a_later_one_is_the_last_event(waited: float, slow: float) -> None:
    """What is known soon keeps its status: nothing was sent before. Else the head, and a comment, are sent whole."""
    exchange = Exchange([waited], ValueError("no"), slow)
    if waited < HEAD_DELAY:
        with pytest.raises(ValueError, match="no"):
            run(exchange.answer())
        assert not exchange.sent
    else:
        run(exchange.answer())
        assert exchange.sent[0][1]["type"] == "http.response.start"
        *comments, last = exchange.bodies
        assert (set(comments) <= {KEEP_ALIVE_COMMENT}, last) == (True, b"ValueError('no')")


@pytest.mark.parametrize("error", [None, ValueError()])
def test_what_is_held_is_given_back_with_the_first_event(error: Exception | None) -> None:
    """Not with the head: until the engine has a request, its body counts."""
    exchange = Exchange([30.0, 30.0], error)
    run(exchange.answer())
    assert exchange.gave_back == pytest.approx(30.0)


@dataclass
class LateEngine(FakeEngine):
    """Says nothing for some seconds, then answers or fails."""

    seconds: float = 25.0

    async def stream(self, *args: Any, **more: Any) -> AsyncIterator[Delta | Finish]:
        self.started.put_nowait(None)
        await asyncio.sleep(self.seconds)
        async for item in super().stream(*args, **more):
            yield item


async def ask(
    engine: FakeEngine, identity: Identity, admission: Admission | None = None, n: int = 1, **state: Any
) -> tuple[list[Message], Message]:
    """Ask the application for a stream; return what it sends, and the state of the request."""
    sent: list[Message] = []
    body = iter([{"type": "http.request", "body": json.dumps({**HELLO, "stream": True, "n": n}).encode()}])

    async def receive() -> Message:
        for message in body:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    asked = {**scope(), "state": state}
    if "timer" in state:
        state["timer"] = ResponseTimer(asked, receive, send)
        receive, send = state["timer"].receive, state["timer"].send
    await create_app(engine, identity, settings(), serving=lambda: True, admission=admission)(asked, receive, send)
    return sent, state


def text_of(sent: list[Message]) -> str:
    return b"".join(message.get("body", b"") for message in sent).replace(KEEP_ALIVE_COMMENT, b"").decode()


def test_a_stream_that_waits_for_the_engine_names_its_version_at_once() -> None:
    """It is admitted, so that the weights which answer it are known when the head is sent."""
    sent, _ = run(ask(LateEngine(), Identity("1.2.0", "green", 1)))
    assert dict(sent[0]["headers"])[b"x-model-version"] == b"1.2.0"
    assert [message.get("body") for message in sent[1:3]] == [KEEP_ALIVE_COMMENT] * 2
    assert events(text_of(sent))[-1] == "[DONE]"


def test_a_head_never_names_a_version_that_does_not_answer() -> None:
    """While weights are replaced the version is unknown: the head names none, and every event the new one."""
    identity = Identity("1.2.0", "green", 1)
    admission = Admission(identity)

    async def scenario() -> list[Message]:
        admission.pause()
        asked = asyncio.create_task(ask(FakeEngine(), identity, admission))
        await asyncio.sleep(25)
        identity.version = "1.3.0"
        admission.resume()
        return (await asked)[0]

    sent = run(scenario())
    headers = dict(sent[0]["headers"])
    assert b"x-model-version" not in headers
    assert (headers[b"x-slot"], b"x-request-id" in headers) == (b"green", True)
    *chunks, _ = events(text_of(sent))
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"1.3.0"}


@pytest.mark.parametrize("internal", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (QueueTimeout("60 s"), 429, "rate_limit_error"),
        (Refused("no"), 400, "invalid_request_error"),
        (RuntimeError("the device is gone"), 500, "server_error"),
    ],
)
def test_an_error_after_the_head_is_the_object_that_the_response_would_have_been(
    error: Exception, status: int, kind: str, internal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is timed and logged with its status. Of the internal socket, where no proxy is, the head waits for it."""
    caplog.set_level(logging.INFO)
    engine = LateEngine(fail_at=0, error=error)
    sent, state = run(ask(engine, Identity("1.2.0", "green", 1), internal=internal, timer=True))
    assert sent[0]["status"] == (status if internal else 200)
    text = text_of(sent)
    found = json.loads(text if internal else text.removeprefix("data: "))
    assert (set(found), found["error"]["type"]) == ({"error"}, kind)
    timer = state["timer"]
    assert (timer.status, timer.times()[1]) == (status, -1)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("service")]
    assert [f"refused with {status}: " in line for line in lines] == [status < 500]
    assert dict(sent[0]["headers"])[b"x-model-version"] == b"1.2.0"


def test_a_refusal_of_a_stream_names_the_current_version() -> None:
    """No weights were used for it, and it was not admitted."""
    sent, _ = run(ask(FakeEngine(), Identity("1.2.0", "green", 1), n=100))
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"x-model-version"]) == (400, b"1.2.0")


def test_comments_are_neither_timed_nor_captured() -> None:
    """The time to the first piece is that of the first event; the mirror compares the stream without comments."""
    captured = []

    class Captured:
        def add_request(self, body: bytes, *, complete: bool) -> None:
            raise AssertionError

        def add_response(self, body: bytes, *, complete: bool) -> None:
            captured.append((body, complete))

    async def scenario() -> None:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            raise AssertionError

        timer = ResponseTimer({"path": CHAT}, receive, send)
        timer.capture = Captured()
        await timer.send({"type": "http.response.start", "status": 200, "headers": []})
        await timer.send({"type": "http.response.body", "body": KEEP_ALIVE_COMMENT, "more_body": True})
        assert timer.times()[1] == -1
        await timer.send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        assert timer.times()[1] >= 0
        await timer.send({"type": "http.response.body", "body": b""})
        assert len(sent) == 4

    run(scenario())
    assert captured == [(b"data: 1\n\n", False), (b"", True)]


class LateApp(App):
    """The service's application, whose engine gives up after a moment."""

    async def _answer(self, path: str, receive: Receive, send: Send) -> None:
        engine = LateEngine(fail_at=0, error=QueueTimeout("60 s"), seconds=0.1)
        asked: Scope = {**scope(), "state": self.state}
        app = create_app(engine, Identity("1.2.0", self.slot, 1), Settings(slot="blue"), serving=lambda: True)
        await app(asked, receive, send)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.state = scope["state"]
        await super().__call__(scope, receive, send)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_head_is_on_the_wire_before_the_error_which_counts_by_its_status(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Over a socket: head, comments, error; the sample has the status that the response would have had."""
    monkeypatch.setattr(sse, "HEAD_DELAY", 0.01)
    monkeypatch.setenv("GLM_KEEP_ALIVE_COMMENT", "0.02")
    runtime = tmp_path_factory.mktemp("run")
    async with running_host(tmp_path, runtime, app=LateApp) as host:
        client = await host.client()
        body = json.dumps({**HELLO, "stream": True}).encode()
        reply = await client.ask(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        *comments, error = reply.body.decode().removesuffix("\n\n").split("\n\n")
        assert (reply.status, set(comments)) == (200, {": keep-alive"})
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "queue_timeout"
        await until(lambda: new_samples(runtime / "blue/1/1.samples", "1.0.0")[0], "the sample")
        [sample] = new_samples(runtime / "blue/1/1.samples", "1.0.0")[0]
        assert (sample.status, sample.first) == (429, None)
    assert not [one for one in caplog.records if one.name == "uvicorn.error" and one.levelno >= logging.WARNING]
