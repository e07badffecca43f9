"""The mirror: requests are sent to the candidate too, and neither clients nor ledgers are affected."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from service.app import create_app
from service.contract.canary_file import Canary
from service.contract.samples import Sample, new_samples
from service.contract.worker_state import Ledger
from service.identity import Identity
from service.metrics import flush
from service.routing import mirror as module
from service.routing.canary import pick_mirrored
from service.routing.compare import read_choices, text_length
from service.settings import Settings
from service.timing import CHAT_PATH as CHAT
from tests.server_fixtures import TIMEOUT, App, Client, Host, Message, Receive, Send, running_host, until
from tests.test_app import FakeEngine

QUESTION = {"messages": [{"role": "user", "content": "hello"}]}
GREEDY = QUESTION | {"temperature": 0}


class RecordingApp(App):
    """The service's application with a fake engine; records each request's headers, begin and end."""

    def __init__(self, slot: str, events: list[str]) -> None:
        super().__init__(slot)
        self.engine = FakeEngine()
        self.events = events
        self.heads: list[dict[bytes, bytes]] = []
        self.configure()

    def configure(self, **settings: Any) -> None:
        """Start the application again with these settings."""
        parsed = Settings.model_validate({"slot": self.slot, **settings})
        self._service = create_app(self.engine, Identity("1.0.0", self.slot, 1), parsed, serving=lambda: True)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.events.append(f"{self.slot} begins")
        self.heads.append(dict(scope["headers"]))
        try:
            await self._service(scope, receive, send)
        finally:
            self.events.append(f"{self.slot} ends")


class Pair:
    """Blue, which is live, and green, the candidate; `events` holds those of both applications in order."""

    def __init__(self, host: Host, events: list[str]) -> None:
        self.host = host
        self.events = events
        self.blue, self.green = host.blue, host.green
        self.path = host.runtime / "canary"
        self._ring = host.runtime / "blue/1/1.samples"
        self._seen = 0

    def app(self, slot: str) -> RecordingApp:
        app = {"blue": self.blue, "green": self.green}[slot].app
        assert isinstance(app, RecordingApp)
        return app

    def mirror(self, share: float, **more: Any) -> None:
        """Mirror this share of blue's requests to green, in percent; `more` are other fields of the canary file."""
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps({"slot": "green", "weight": 0, "step": 1, "mirror": share, **more}))
        temporary.replace(self.path)

    async def client(self) -> Client:
        return await self.host.client()

    def samples(self) -> list[Sample]:
        """Return the samples of mirrored requests that were written since the last call."""
        found, self._seen = new_samples(self._ring, "1.0.0", self._seen)
        return [sample for sample in found if sample.is_mirrored]

    async def settled(self) -> list[Sample]:
        """Wait until no request and no copy is in flight, and return the new samples."""
        mirror = self.blue.server.mirror
        await until(lambda: self.events.count("blue begins") == self.events.count("blue ends"), "the responses")
        await until(lambda: not mirror.captured and not mirror._tasks, "the end of the copies")
        return self.samples()


def mirrored(outcome: str, version: str = "1.0.0") -> float:
    """Return the value of glm_mirrored_total for an outcome."""
    labels = {"version": version, "slot": "blue", "outcome": outcome}
    return REGISTRY.get_sample_value("glm_mirrored_total", labels) or 0.0


def answered(slot: str, route: str = CHAT) -> float:
    """Return the value of glm_requests_total for status 200."""
    flush()
    labels = {"version": "1.0.0", "slot": slot, "route": route, "status": "200"}
    return REGISTRY.get_sample_value("glm_requests_total", labels) or 0.0


def request(body: dict[str, Any], *headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    events: list[str] = []
    (tmp_path / "run").mkdir()
    async with running_host(tmp_path, tmp_path / "run", app=lambda slot: RecordingApp(slot, events)) as host:
        yield Pair(host, events)


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "text", "agrees"),
    [(GREEDY, "Hello 世界", True), (GREEDY, "Hello moon", False), (QUESTION, "Hello 世界", None)],
)
async def test_copy_is_sent_after_the_response(
    pair: Pair, body: dict[str, Any], text: str, agrees: bool | None, stream: bool
) -> None:
    """A copy has the request's headers except those of the connection; only answers to greedy requests are compared."""
    pair.mirror(100)
    pair.app("green").engine.words = tuple(text)
    client = await pair.client()
    reply = await client.ask(request(body | {"stream": stream}, "Authorization: Bearer me", "X-GLM-Slot: live"))
    assert (reply.status, reply.slot) == (200, "blue")
    assert "世界".encode() in reply.body
    await until(lambda: pair.events[3:], "the copy")
    assert pair.events == ["blue begins", "blue ends", "green begins", "green ends"]
    head = pair.app("green").heads[0]
    assert (head[b"authorization"], head[b"content-type"]) == (b"Bearer me", b"application/json")
    assert b"x-glm-slot" not in head
    assert pair.app("green").engine.seen == pair.app("blue").engine.seen
    [sample] = await pair.settled()
    assert (sample.status, sample.agrees, sample.is_error) == (200, agrees, False)
    assert sample.ratio == pytest.approx(len(text) / len("Hello 世界"))
    assert 0 < sample.seconds < TIMEOUT
    assert (sample.first is not None) is stream


@pytest.mark.anyio
async def test_copies_are_counted_as_internal_requests_alone(pair: Pair) -> None:
    """The live slot counts its request once, the candidate counts the copy as internal; the metrics agree."""
    pair.mirror(100)
    before = answered("blue"), answered("green"), answered("green", "internal"), mirrored("equal")
    client = await pair.client()
    for _ in range(3):
        assert (await client.ask(request(GREEDY))).status == 200
        await pair.settled()
    assert pair.blue.ledger == Ledger(accepted=3, completed=3)
    assert pair.green.ledger == Ledger(internal=3)
    assert new_samples(pair.host.runtime / "green/1/1.samples", "1.0.0") == ([], 0)
    after = answered("blue"), answered("green"), answered("green", "internal"), mirrored("equal")
    assert [now - then for now, then in zip(after, before, strict=True)] == [3, 0, 3, 3]
    pair.blue.server.state.set_version("after")  # a weight swap
    assert (await client.ask(request(GREEDY))).status == 200
    await pair.settled()
    assert mirrored("equal", "after") == 1


@pytest.mark.anyio
@pytest.mark.parametrize("canary", [None, {"share": 0}, {"share": 100, "slot": "blue"}, {"share": 100, "slot": "../x"}])
async def test_nothing_is_mirrored_without_a_share_or_a_candidate(pair: Pair, canary: dict[str, Any] | None) -> None:
    """Without a canary file, with a share of 0, with the live slot as candidate, and with a name that is no slot."""
    if canary:
        pair.mirror(**canary)
    client = await pair.client()
    for _ in range(20):
        assert (await client.ask(request(GREEDY))).slot == "blue"
    assert await pair.settled() == []
    assert pair.events == ["blue begins", "blue ends"] * 20


@pytest.mark.parametrize("share", [0, 1, 20, 100])
def test_mirrored_share_is_as_configured(share: float) -> None:
    """Each of 20,000 requests is mirrored with the configured probability."""
    picked = sum(pick_mirrored(Canary("green", 0, mirror=share)) for _ in range(20_000))
    spread = 3.9 * math.sqrt(20_000 * share / 100 * (1 - share / 100))  # exceeded by one run in 10,000
    assert abs(picked - 200 * share) <= spread


@pytest.mark.anyio
async def test_only_chat_requests_of_clients_of_the_live_slot_are_mirrored(pair: Pair) -> None:
    """Requests that the candidate answers are not mirrored, nor those of the internal socket, nor other routes."""
    pair.mirror(100)
    client = await pair.client()
    assert (await client.ask(request(GREEDY, "X-GLM-Slot: candidate"))).slot == "green"
    internal = Client(*await asyncio.open_unix_connection(str(pair.host.runtime / "blue/http.sock")))
    assert (await internal.ask(request(GREEDY))).slot == "blue"
    assert (await internal.ask(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200
    internal.writer.close()
    other = await pair.client()
    assert (await other.ask(b"GET /version HTTP/1.1\r\nHost: x\r\nX-GLM-Slot: live\r\n\r\n")).slot == "blue"
    assert await pair.settled() == []
    assert pair.events.count("green begins") == 1


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["no file", "no share", "cutover"])
async def test_candidate_that_hangs_gets_at_most_two_copies(pair: Pair, end: str) -> None:
    """Further copies are dropped and counted; the end of the mirror cancels those in flight, without a sample."""
    pair.mirror(100)
    green = pair.app("green").engine
    green.wait_at = 1
    before = mirrored("dropped")
    client = await pair.client()
    for number in range(7):
        assert (await client.ask(request(GREEDY | {"stream": number % 2 == 0}))).status == 200
    await until(lambda: len(green.seen) == 2, "the copies")
    await until(lambda: mirrored("dropped") == before + 5, "the count")
    if end == "no file":
        pair.path.unlink()
    elif end == "no share":
        pair.mirror(0)
    else:
        pair.host.go_live("green")
    await until(lambda: green.cancelled == 2, "the cancellation of both")
    assert await pair.settled() == []
    assert (pair.blue.ledger.accepted, pair.blue.ledger.completed) == (7, 7)


@pytest.mark.anyio
async def test_leaving_worker_does_not_wait_for_copies(pair: Pair) -> None:
    """A worker ends while the candidate still hangs."""
    pair.mirror(100)
    pair.app("green").engine.wait_at = 1
    client = await pair.client()
    assert (await client.ask(request(GREEDY))).status == 200
    await until(lambda: pair.app("green").engine.seen, "the copy")
    await pair.blue.leave()
    assert pair.blue.ledger == Ledger(accepted=1, completed=1, handed_out=pair.blue.ledger.handed_out)
    assert pair.samples() == []


@pytest.mark.anyio
async def test_candidate_that_reads_nothing_delays_nothing(pair: Pair, tmp_path: Path) -> None:
    """Clients are answered and the worker ends while megabytes of copies are not read; their memory is released."""
    pair.mirror(100)
    with socket.socket(socket.AF_UNIX) as unread:
        unread.bind(str(tmp_path / "unread"))
        unread.listen(8)
        (tmp_path / "unread").rename(pair.host.runtime / "green/http.sock")
        client = await pair.client()
        large = {"messages": [{"role": "user", "content": "a" * (4 << 20)}], "temperature": 0}
        for body in (large, large, GREEDY, GREEDY):
            assert (await client.ask(request(body))).slot == "blue"
        await until(lambda: len(pair.blue.server.mirror._tasks) == module.MAX_IN_FLIGHT, "the copies")
        await pair.blue.leave()
    assert pair.blue.server.mirror.captured == 0
    assert pair.samples() == []


@pytest.mark.anyio
@pytest.mark.parametrize(("body", "answer", "kept"), [(100, 1 << 20, 1 << 20), (1 << 20, 100, 1 << 20), (999, 999, 50)])
async def test_exchange_over_a_size_limit_is_dropped(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, body: int, answer: int, kept: int
) -> None:
    """Over the limit of a body, of an answer, or of all captured bytes, no copy is sent; the client is answered."""
    for name, limit in (("MAX_REQUEST", body), ("MAX_ANSWER", answer), ("MAX_CAPTURED", kept)):
        monkeypatch.setattr(module, name, limit)
    pair.mirror(100)
    before = mirrored("dropped")
    client = await pair.client()
    long = {"messages": [{"role": "user", "content": "a" * 200_000}], "temperature": 0}
    reply = await client.ask(request(long if body == 100 else GREEDY))
    assert (reply.status, reply.slot) == (200, "blue")
    assert await pair.settled() == []
    assert mirrored("dropped") == before + 1
    assert pair.app("green").engine.seen == []


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_failures_of_the_candidate_are_errors_in_samples_alone(pair: Pair, stream: bool) -> None:
    """A broken-off answer, a refusal, and a candidate without a socket are one error each; clients are answered."""
    pair.mirror(100)
    client = await pair.client()
    green = pair.app("green")

    async def sample() -> tuple[int, bool | None, bool]:
        assert (await client.ask(request(GREEDY | {"stream": stream}))).status == 200
        [sample] = await pair.settled()
        return sample.status, sample.agrees, sample.is_error

    green.engine.fail_at = 1
    assert await sample() == (599 if stream else 500, None, True)
    green.engine.fail_at = None
    green.configure(max_body=10)
    assert await sample() == (413, None, True)
    (pair.host.runtime / "green/http.sock").unlink()
    assert await sample() == (599, None, True)
    assert pair.blue.ledger == Ledger(accepted=3, completed=3)


@pytest.mark.anyio
async def test_requests_that_the_live_slot_failed_are_not_mirrored(pair: Pair) -> None:
    """No copy is sent of a request that ended with a 500; one that both slots refuse as invalid is no error."""
    pair.mirror(100)
    client = await pair.client()
    assert (await client.ask(request({"messages": []}))).status == 400
    [refused] = await pair.settled()
    assert (refused.status, refused.agrees, refused.is_error) == (400, None, False)
    pair.app("blue").engine.fail_at = 0
    assert (await client.ask(request(GREEDY))).status == 500
    assert await pair.settled() == []
    assert pair.app("green").engine.seen == []


CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


@pytest.mark.anyio
async def test_copy_that_is_cancelled_before_it_starts_releases_its_memory(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that ends in the turn of the event loop in which a copy was created keeps none of its bytes."""
    pair.mirror(100)
    mirror = pair.blue.server.mirror
    replay = mirror.replay

    def cancelled_at_once(exchange: module.CapturedExchange) -> None:
        replay(exchange)
        for task in mirror._tasks:
            task.cancel()

    monkeypatch.setattr(mirror, "replay", cancelled_at_once)
    client = await pair.client()
    for _ in range(3):
        assert (await client.ask(request(GREEDY))).status == 200
    assert await pair.settled() == []
    assert mirror.captured == 0


def body_of(**message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return json.dumps({"id": "a", "created": 1, "choices": [choice]}).encode()


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (body_of(content="a", reasoning_content="b", tool_calls=[CALL | {"id": "call_2"}]), True),
        (body_of(content="A", reasoning_content="b", tool_calls=[CALL]), False),
        (body_of(content="a", reasoning_content="B", tool_calls=[CALL]), False),
        (body_of(content="a", reasoning_content="b", tool_calls=[]), False),
        (body_of(content="a", reasoning_content="b", tool_calls=[CALL]).replace(b'"stop"', b'"length"'), False),
        (
            body_of(content="a", reasoning_content="b", tool_calls=[CALL]).replace(b'"created": 1', b'"created": 2'),
            True,
        ),
    ],
)
def test_answers_are_compared_without_ids_and_times(other: bytes, equal: bool) -> None:
    """Two answers are equal if content, reasoning, tool calls and finish reason are."""
    choices = read_choices(body_of(content="a", reasoning_content="b", tool_calls=[CALL]))
    assert (read_choices(other) == choices) is equal
    assert text_length(choices) == len("ab") + len("now{}")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"error": {}}', b'data: {"choices": []}\n\n', b"data: {\n\n"])
def test_body_that_is_no_completion_is_refused(body: bytes) -> None:
    """Other JSON, invalid JSON and a stream without [DONE] raise an error."""
    with pytest.raises((ValueError, KeyError, TypeError)):
        read_choices(body)
