"""The mirror: the candidate is asked what the live slot was asked, and nobody but the verdict ever notices."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from deploy.analysis.samples import Samples
from deploy.journal.journal import Journal
from service.app import create_app
from service.contract.canary_file import Canary, CanaryFile
from service.contract.samples import Sample, new_samples
from service.contract.worker_state import Ledger
from service.identity import Identity
from service.routing import mirror as module
from service.routing.canary import pick_mirrored
from service.routing.compare import read_choices, text_length
from service.settings import Settings
from tests import test_connection
from tests.box import Box, kill, wait_for
from tests.test_app import FakeEngine
from tests.test_connection import App, Client, Host, Message, until

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "hello"}]}
GREEDY = QUESTION | {"temperature": 0}


class Oracle(App):
    """The service around an engine that says its words; it notes who was asked when."""

    events: list[str]

    def __init__(self, slot: str) -> None:
        super().__init__(slot)
        self.engine = FakeEngine()
        self.heads: list[dict[bytes, bytes]] = []
        self.change()

    def change(self, **settings: Any) -> None:
        own = Settings.model_validate({"slot": self.slot, **settings})
        self._service = create_app(self.engine, Identity("1.0.0", self.slot, 1), own, serving=lambda: True)

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        self.events.append(f"{self.slot} begins")
        self.heads.append(dict(scope["headers"]))
        try:
            await self._service(scope, receive, send)
        finally:
            self.events.append(f"{self.slot} ends")


class Pair:
    """Blue, which is live, and green, on one listening socket; what both do is in one list."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.blue, self.green = host.blue, host.green
        self.path = host.runtime / "canary"
        self._ring = host.runtime / "blue/1/1.samples"
        self._seen = 0

    @property
    def events(self) -> list[str]:
        return self.oracle("blue").events

    def oracle(self, slot: str) -> Oracle:
        app = {"blue": self.blue, "green": self.green}[slot].app
        assert isinstance(app, Oracle)
        return app

    def give(self, share: float, **more: Any) -> None:
        """Let green be asked this share of blue's requests."""
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps({"slot": "green", "weight": 0, "step": 1, "mirror": share, **more}))
        temporary.replace(self.path)

    async def client(self) -> Client:
        return await self.host.client()

    def samples(self) -> list[Sample]:
        """Those of mirrored answers that came since the last call."""
        found, self._seen = new_samples(self._ring, self._seen)
        return [one for one in found if one.is_mirrored]

    async def settled(self) -> list[Sample]:
        mirror = self.blue.server.mirror
        await until(lambda: self.events.count("blue begins") == self.events.count("blue ends"), "the end of answers")
        await until(lambda: not mirror.kept and not mirror._tasks, "the end of the mirror's work")
        return self.samples()

    def dropped(self) -> float:
        return counted("dropped")


def counted(outcome: str) -> float:
    """How often the mirror of this process says that came out."""
    labels = {"version": "1.0.0", "slot": "blue", "outcome": outcome}
    return REGISTRY.get_sample_value("glm_mirrored_total", labels) or 0.0


def answered(slot: str, route: str = CHAT) -> float:
    """How many requests the metrics say were answered there."""
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
async def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    monkeypatch.setattr(test_connection, "App", Oracle)
    monkeypatch.setattr(Oracle, "events", [], raising=False)
    (tmp_path / "run").mkdir()
    host = Host(tmp_path, tmp_path / "run", {})
    for slot in host.slots:
        slot.publish()
    host.go_live("blue")
    await until(lambda: all(slot.server.started for slot in host.slots), "the start")
    yield Pair(host)
    await host.close()
    assert not complaints, complaints


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "words", "kind"),
    [(GREEDY, "Hello 世界", True), (GREEDY, "Hello moon", False), (QUESTION, "Hello 世界", None)],
)
async def test_a_request_is_asked_again_when_its_answer_was_sent(
    pair: Pair, body: dict[str, Any], words: str, kind: bool | None, stream: bool
) -> None:
    """Not before; with its headers but the connection's own; and only greedy answers are called equal or not."""
    pair.give(100)
    pair.oracle("green").engine.words = tuple(words)
    client = await pair.client()
    reply = await client.ask(request(body | {"stream": stream}, "Authorization: Bearer me", "X-GLM-Slot: live"))
    assert (reply.status, reply.slot) == (200, "blue")
    assert "世界".encode() in reply.body
    await until(lambda: pair.events[3:], "the mirrored request")
    assert pair.events == ["blue begins", "blue ends", "green begins", "green ends"]
    head = pair.oracle("green").heads[0]
    assert (head[b"authorization"], head[b"content-type"]) == (b"Bearer me", b"application/json")
    assert b"x-glm-slot" not in head
    assert pair.oracle("green").engine.seen == pair.oracle("blue").engine.seen
    [sample] = await pair.settled()
    assert (sample.status, sample.agrees, sample.is_error) == (200, kind, False)
    assert sample.ratio == pytest.approx(len(words) / len("Hello 世界"))
    assert 0 < sample.seconds < test_connection.PATIENCE
    assert (sample.first is not None) is stream


@pytest.mark.anyio
async def test_no_account_knows_of_it(pair: Pair) -> None:
    """The live one counts its own request once, the candidate only at its door; the metrics say the same."""
    pair.give(100)
    before = answered("blue"), answered("green"), answered("green", "internal"), counted("equal")
    client = await pair.client()
    for _ in range(3):
        assert (await client.ask(request(GREEDY))).status == 200
        await pair.settled()
    assert pair.blue.ledger == Ledger(accepted=3, completed=3)
    assert pair.green.ledger == Ledger(internal=3)
    assert new_samples(pair.host.runtime / "green/1/1.samples", 0) == ([], 0)
    after = answered("blue"), answered("green"), answered("green", "internal"), counted("equal")
    assert [now - then for now, then in zip(after, before, strict=True)] == [3, 0, 3, 3]


@pytest.mark.anyio
@pytest.mark.parametrize("given", [None, {"share": 0}, {"share": 100, "slot": "blue"}, {"share": 100, "slot": "../x"}])
async def test_nothing_is_mirrored_without_a_mirror(pair: Pair, given: dict[str, Any] | None) -> None:
    """Where no file is, where it says 0, and where it names the live slot itself or none at all."""
    if given:
        pair.give(**given)
    client = await pair.client()
    for _ in range(20):
        assert (await client.ask(request(GREEDY))).slot == "blue"
    assert await pair.settled() == []
    assert pair.events == ["blue begins", "blue ends"] * 20


@pytest.mark.parametrize("share", [0, 1, 20, 100])
def test_each_request_is_a_toss_of_its_own(share: float) -> None:
    """Of 20,000, as many as the file says."""
    tossed = sum(pick_mirrored(Canary("green", 0, mirror=share)) for _ in range(20_000))
    spread = 3.9 * math.sqrt(20_000 * share / 100 * (1 - share / 100))  # one run in 10,000 lies beyond
    assert abs(tossed - 200 * share) <= spread


@pytest.mark.anyio
async def test_only_clients_of_the_live_slot_are_mirrored(pair: Pair) -> None:
    """What the candidate answers is not asked again, nor what came through a door, nor another route."""
    pair.give(100)
    client = await pair.client()
    assert (await client.ask(request(GREEDY, "X-GLM-Slot: candidate"))).slot == "green"
    door = Client(*await asyncio.open_unix_connection(str(pair.host.runtime / "blue/http.sock")))
    assert (await door.ask(request(GREEDY))).slot == "blue"
    assert (await door.ask(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200
    door.writer.close()
    other = await pair.client()
    assert (await other.ask(b"GET /version HTTP/1.1\r\nHost: x\r\nX-GLM-Slot: live\r\n\r\n")).slot == "blue"
    assert await pair.settled() == []
    assert pair.events.count("green begins") == 1


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["no file", "no share", "cutover"])
async def test_a_candidate_that_hangs_is_asked_two_things_at_most(pair: Pair, end: str) -> None:
    """The others are dropped and counted; the end of the mirror ends what is under way, and leaves no sample."""
    pair.give(100)
    green = pair.oracle("green").engine
    green.wait_at = 1
    before = pair.dropped()
    client = await pair.client()
    for number in range(7):
        assert (await client.ask(request(GREEDY | {"stream": number % 2 == 0}))).status == 200
    await until(lambda: len(green.seen) == 2, "the mirrored requests")
    assert pair.dropped() == before + 5
    if end == "no file":
        pair.path.unlink()
    elif end == "no share":
        pair.give(0)
    else:
        pair.host.go_live("green")
    await until(lambda: green.cancelled == 2, "the end of both")
    assert await pair.settled() == []
    assert (pair.blue.ledger.accepted, pair.blue.ledger.completed) == (7, 7)


@pytest.mark.anyio
async def test_a_worker_that_leaves_waits_for_no_mirrored_answer(pair: Pair) -> None:
    """It is gone while the candidate still hangs."""
    pair.give(100)
    pair.oracle("green").engine.wait_at = 1
    client = await pair.client()
    assert (await client.ask(request(GREEDY))).status == 200
    await until(lambda: pair.oracle("green").engine.seen, "the mirrored request")
    await pair.blue.leave()
    assert pair.blue.ledger == Ledger(accepted=1, completed=1, handed_out=pair.blue.ledger.handed_out)
    assert pair.samples() == []


@pytest.mark.anyio
async def test_nor_for_a_candidate_that_reads_nothing(pair: Pair, tmp_path: Path) -> None:
    """Megabytes that nobody takes are let go; the client's next requests are answered meanwhile."""
    pair.give(100)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen(8)
        (tmp_path / "deaf").rename(pair.host.runtime / "green/http.sock")
        client = await pair.client()
        large = {"messages": [{"role": "user", "content": "a" * (4 << 20)}], "temperature": 0}
        for body in (large, large, GREEDY, GREEDY):
            assert (await client.ask(request(body))).slot == "blue"
        await until(lambda: len(pair.blue.server.mirror._tasks) == module.AT_ONCE, "the mirrored requests")
        await pair.blue.leave()
    assert pair.blue.server.mirror.kept == 0
    assert pair.samples() == []


@pytest.mark.anyio
@pytest.mark.parametrize(("body", "answer", "both"), [(100, 1 << 20, 1 << 20), (1 << 20, 100, 1 << 20), (999, 999, 50)])
async def test_what_is_too_long_is_dropped(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, body: int, answer: int, both: int
) -> None:
    """A body, an answer, or all that is kept: the sample is dropped and counted, the client gets its answer."""
    for name, most in (("MAX_REQUEST", body), ("MAX_ANSWER", answer), ("KEPT", both)):
        monkeypatch.setattr(module, name, most)
    pair.give(100)
    before = pair.dropped()
    client = await pair.client()
    long = {"messages": [{"role": "user", "content": "a" * 200_000}], "temperature": 0}
    reply = await client.ask(request(long if body == 100 else GREEDY))
    assert (reply.status, reply.slot) == (200, "blue")
    assert await pair.settled() == []
    assert pair.dropped() == before + 1
    assert pair.oracle("green").engine.seen == []


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_candidate_that_fails_is_told_and_felt_by_nobody(pair: Pair, stream: bool) -> None:
    """An answer broken off, a refusal of what was answered, a candidate that is not there: an error each."""
    pair.give(100)
    client = await pair.client()
    asked = request(GREEDY | {"stream": stream})
    green = pair.oracle("green")

    async def sample() -> tuple[int, bool | None, bool]:
        assert (await client.ask(asked)).status == 200
        [one] = await pair.settled()
        return one.status, one.agrees, one.is_error

    green.engine.fail_at = 1
    assert await sample() == (599 if stream else 500, None, True)
    green.engine.fail_at = None
    green.change(max_body=10)
    assert await sample() == (413, None, True)
    (pair.host.runtime / "green/http.sock").unlink()
    assert await sample() == (599, None, True)
    assert pair.blue.ledger == Ledger(accepted=3, completed=3)


@pytest.mark.anyio
async def test_what_the_live_slot_could_not_answer_is_not_asked(pair: Pair) -> None:
    """A fault of its own tells nothing of the candidate; a bad request is refused by both, and that is no error."""
    pair.give(100)
    client = await pair.client()
    assert (await client.ask(request({"messages": []}))).status == 400
    [refused] = await pair.settled()
    assert (refused.status, refused.agrees, refused.is_error) == (400, None, False)
    pair.oracle("blue").engine.fail_at = 0
    assert (await client.ask(request(GREEDY))).status == 500
    assert await pair.settled() == []
    assert pair.oracle("green").engine.seen == []


CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def whole(**message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return json.dumps({"id": "a", "created": 1, "choices": [choice]}).encode()


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (whole(content="a", reasoning_content="b", tool_calls=[CALL | {"id": "call_2"}]), True),
        (whole(content="A", reasoning_content="b", tool_calls=[CALL]), False),
        (whole(content="a", reasoning_content="B", tool_calls=[CALL]), False),
        (whole(content="a", reasoning_content="b", tool_calls=[]), False),
        (whole(content="a", reasoning_content="b", tool_calls=[CALL]).replace(b'"stop"', b'"length"'), False),
        (whole(content="a", reasoning_content="b", tool_calls=[CALL]).replace(b'"created": 1', b'"created": 2'), True),
    ],
)
def test_an_answer_is_what_it_says(other: bytes, equal: bool) -> None:
    """Text, thought, calls and the reason of its end; not ids, and not when it was."""
    said = read_choices(whole(content="a", reasoning_content="b", tool_calls=[CALL]))
    assert (read_choices(other) == said) is equal
    assert text_length(said) == len("ab") + len("now{}")


@pytest.mark.parametrize("broken", [b"", b"[]", b'{"error": {}}', b'data: {"choices": []}\n\n', b"data: {\n\n"])
def test_what_is_no_answer_is_not_read(broken: bytes) -> None:
    """A stream without its end is none."""
    with pytest.raises((ValueError, KeyError, TypeError)):
        read_choices(broken)


# with a real systemd and real models


@contextmanager
def mirror(box: Box, version: str, share: float, *words: str) -> Iterator[Popen[str]]:
    """A deploy that mirrors until the end of the block, and is aborted then if it still waits."""
    deploy = box.begin("deploy", version, "--bake", "0", "--mirror", str(share), "--step", "pause", *words)
    try:
        box.await_phase(deploy, "canary")
        wait_for(CanaryFile(box.host.runtime).read)
        yield deploy
    finally:
        CanaryFile(box.host.runtime).remove()
        deploy.communicate(timeout=60)


def questions(count: int) -> list[dict[str, Any]]:
    """Greedy ones, every third a stream."""
    return [
        {"messages": [{"role": "user", "content": f"say {number % 7}"}], "temperature": 0, "max_tokens": 5}
        | ({"stream": True} if number % 3 == 0 else {})
        for number in range(count)
    ]


def ask(box: Box, count: int) -> list[bytes]:
    """Ask on one kept connection; every answer is blue's. Returns them without what differs each time."""
    answers = []
    with httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=60) as client:
        for body in questions(count):
            reply = client.post(CHAT, json=body)
            assert (reply.status_code, reply.headers["x-slot"]) == (200, "blue")
            answers.append(re.sub(rb'"(id|created)":("[^"]*"|\d+)', b"", reply.content))
    return answers


def dropped(box: Box) -> float:
    """How many of blue's requests should have been mirrored and were not."""
    found = re.search(r'^glm_mirrored_total\{.*"dropped".*\} (\S+)$', box.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def live(stocked_live: Box, checkpoints: dict[str, Path]) -> Box:
    """A host on which 1.0.0 is live, with a release of the same model, 1.0.1, and another, 1.1.0."""
    stocked_live.glmctl("release", "add", str(checkpoints["1.0.0"]), "--version", "1.0.1")
    return stocked_live


def test_the_candidate_is_asked_its_share_and_the_clients_see_nothing(live: Box) -> None:
    """A fifth of 400 requests, streams among them; answers are the same bytes, no account has one more, none after."""
    requests, share = 400, 0.2
    plain = ask(live, requests)
    seen = Samples(live.host, "blue", "1.0.0")
    seen.new()
    with mirror(live, "1.1.0", 100 * share):
        assert live.json("status")["slots"]["green"]["mirror"] == 100 * share
        accepted = live.generation("blue").workers[0].ledger.accepted
        assert ask(live, requests) == plain
        wait_for(lambda: live.generation("blue").workers[0].ledger.accepted == accepted + requests)
        found = [one for one in seen.new() if one.is_mirrored]
        asked = len(found) + dropped(live)
        spread = 3.9 * math.sqrt(requests * share * (1 - share))  # one run in 10,000 lies beyond
        assert abs(asked - requests * share) <= spread + module.AT_ONCE, (len(found), asked)
        assert len(found) > asked / 2
        assert {one.status for one in found} == {200}
        assert all(one.first is None or one.first <= one.seconds for one in found)
        assert {one.first is None for one in found} == {True, False}
        green = live.generation("green").workers[0].ledger
        assert (green.accepted, green.completed, green.adopted) == (0, 0, 0)
        CanaryFile(live.host.runtime).remove()
        wait_for(lambda: not live.generation("blue").in_flight)
        seen.new()
        ask(live, 50)
        assert not [one for one in seen.new() if one.is_mirrored]


def test_a_candidate_that_hangs_or_dies_delays_and_breaks_nothing(live: Box) -> None:
    """With its worker stopped, then killed, then all of it gone, every client gets the same answers as ever."""
    plain = ask(live, 30)
    with mirror(live, "1.1.0", 100) as deploy:
        [worker] = live.generation("green").alive_workers
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            before = dropped(live)
            assert ask(live, 30) == plain
            assert dropped(live) >= before + 30 - module.AT_ONCE
        finally:
            kill(worker.pid)
        assert ask(live, 30) == plain
        live.systemctl("stop", "glm@green.service")
        assert ask(live, 30) == plain
        out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 5, out
    assert ask(live, 30) == plain


@contextmanager
def clients(box: Box) -> Iterator[list[int]]:
    """Somebody who asks all the time until the end of the block; gives the statuses of the answers."""
    statuses: list[int] = []
    over = threading.Event()

    def run() -> None:
        with httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=60) as client:
            while not over.is_set():
                statuses.extend(client.post(CHAT, json=body).status_code for body in questions(5))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield statuses
    finally:
        over.set()
        thread.join()


def test_the_verdict_tells_how_many_answers_were_equal(box: Box, checkpoints: dict[str, Path]) -> None:
    """All of an equal release's, which goes live; few of another's, which does not where the operator asks for more."""
    box.glmctl("release", "add", str(checkpoints["1.0.0"]), "--version", "1.0.1")
    box.host.policy.write_text("[analysis]\nmin_agreement = 0.9\nmin_requests = 20\n")
    words = ("--mirror", "100", "--step", "4s", "--bake", "0")
    with clients(box) as statuses:
        record = box.json("deploy", "1.0.1", *words)
        [verdict] = [one for one in record["analysis"] if one["window"] == "0 %"]
        [equal] = [one for one in verdict["metrics"] if one["name"] == "agreement"]
        assert (verdict["outcome"], equal["candidate"], verdict["length_ratio"]) == ("not worse", 1.0, 1.0)
        assert verdict["mirrored"] == equal["candidate_requests"] >= 20
        names = [one["name"] for one in verdict["metrics"]]
        assert names == ["errors", "mirrored p95", "mirrored ttft p95", "agreement"]
        told = box.glmctl("deploy", "1.0.0", *words, "--max-p95", "1ms", expect=5)
        assert "p95 is" in told.stderr
        told = box.glmctl("deploy", "1.1.0", *words, expect=5)
        assert "equal the live slot's" in told.stderr
    assert set(statuses) == {200}
    last = Journal(box.host).last()
    assert last is not None
    assert last.outcome == "rolled back"
    [verdict] = [one.model_dump() for one in last.analysis]
    [other] = [one for one in verdict["metrics"] if one["name"] == "agreement"]
    assert verdict["outcome"] == "worse"
    assert other["worse"]
    assert other["candidate"] < 0.5
    assert box.get("/version").json()["version"] == "1.0.1"
