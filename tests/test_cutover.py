"""Cutover and rollback: clients reach the other version within 100 ms, and no response mixes two versions."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from service.contract.slots import SLOTS
from tests.box import Box, wait_for

TARGET_MS = 100


@pytest.fixture
def warm_box(box: Box) -> Iterator[Box]:
    """A host on which 1.1.0 is live in green while 1.0.0 is warm in blue."""
    with box.baking("1.1.0"):
        yield box
        box.glmctl("rollback")


@pytest.mark.alone
def test_keep_alive_clients_follow_within_100_ms_of_the_rename(warm_box: Box) -> None:
    """A keep-alive client is answered by the other version within 100 ms of the rename, on the same connection."""
    box = warm_box
    took = []
    with httpx.Client(base_url=f"http://{box.listen}", trust_env=False) as client:
        port = client.get("/version").extensions["network_stream"].get_extra_info("client_addr")[1]
        for _ in range(10):
            time.sleep(0.15)  # whatever a worker has read of the last rename is not new any more
            wanted = box.slots.idle
            box.slots.go_live(wanted)
            renamed = time.monotonic()
            while (answer := client.get("/version")).headers["x-slot"] != wanted:
                assert time.monotonic() - renamed < 5
            took.append((time.monotonic() - renamed) * 1000)
            assert answer.extensions["network_stream"].get_extra_info("client_addr")[1] == port
            assert answer.json()["version"] == answer.headers["x-model-version"]
    assert statistics.median(took) < TARGET_MS, took


@pytest.mark.alone
def test_rollback_while_warm_takes_under_100_ms(warm_box: Box) -> None:
    """The time from the rename to the first response of the old version is below 100 ms, and nothing is loaded."""
    masters = [warm_box.generation(slot).master for slot in SLOTS]
    took = [warm_box.json("rollback")["switch_ms"] for _ in range(6)]
    assert statistics.median(took) < TARGET_MS, took
    assert [warm_box.generation(slot).master for slot in SLOTS] == masters


def test_health_checks_do_not_fail_at_a_cutover(warm_box: Box) -> None:
    """Not right after the rename either, when a worker answers clients before it has opened its gate."""
    box = warm_box
    ends = time.monotonic() + 5

    def check() -> Counter[int]:
        with httpx.Client(base_url=f"http://{box.listen}", trust_env=False) as client:
            found: Counter[int] = Counter()
            while time.monotonic() < ends:
                found[client.get("/readyz").status_code] += 1
            return found

    with ThreadPoolExecutor(4) as threads:
        checks = [threads.submit(check) for _ in range(4)]
        while time.monotonic() < ends:
            box.slots.go_live(box.slots.idle)
            time.sleep(0.1)
        statuses = sum((one.result() for one in checks), Counter[int]())
    assert set(statuses) == {200}, statuses


def test_a_response_is_finished_by_the_version_that_began_it(warm_box: Box) -> None:
    """A stream during a cutover is complete and of the old version; its connection then leads to the new one."""
    box = warm_box
    body = {"messages": [{"role": "user", "content": "count"}], "max_tokens": 400, "temperature": 0, "stream": True}
    with httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=60) as client:
        whole = _text(client.post("/v1/chat/completions", json=body))
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            began = response.headers["x-slot"]
            box.slots.go_live(box.slots.idle)
            rest = "\n".join([first, *lines])
        assert _text(rest) == whole
        assert client.get("/version").headers["x-slot"] != began


def test_requests_in_flight_at_the_cutover_are_counted_as_drained(warm_box: Box) -> None:
    """Only the streams in flight count: no idle connection, no request before or after."""
    box = warm_box
    body = {"messages": [{"role": "user", "content": "count"}], "max_tokens": 400, "temperature": 0, "stream": True}
    old, new = box.slots.live or "", box.slots.idle
    before = _drained(box, old), _drained(box, new)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=60))
            for _ in range(5)
        ]
        for client in clients:
            assert client.get("/version").headers["x-slot"] == old
        streams = [
            stack.enter_context(client.stream("POST", "/v1/chat/completions", json=body)) for client in clients[:3]
        ]
        lines = [stream.iter_lines() for stream in streams]
        for each in lines:
            next(each)
        box.slots.go_live(new)
        wait_for(lambda: box.generation(old).gate == "closed")
        assert (_drained(box, old), _drained(box, new)) == before
        for stream, each in zip(streams, lines, strict=True):
            assert stream.headers["x-slot"] == old
            assert "[DONE]" in "\n".join(each)
        for client in clients:
            assert client.get("/version").headers["x-slot"] == new
        wait_for(lambda: box.generation(old).in_flight == 0)
        wait_for(lambda: _drained(box, old) == before[0] + 3)
    assert _drained(box, new) == before[1]


def _drained(box: Box, slot: str) -> int:
    return sum(worker.ledger.drained for one in box.generations(slot) for worker in one.workers)


@pytest.mark.model
def test_the_openai_package_works_unchanged_across_a_cutover(warm_box: Box, tmp_path: Path) -> None:
    """The official client chats, streams and sends an image, before and after a cutover."""
    import base64
    import io

    from PIL import Image

    box = warm_box
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    answers = []
    with OpenAI(base_url=f"http://{box.listen}/v1", api_key="none", max_retries=0) as client:
        for _ in range(2):
            model = client.models.list().data[0].id
            reply = client.chat.completions.create(
                model=model,
                max_tokens=8,
                temperature=0,
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "What colour?"},
                            {"type": "image_url", "image_url": {"url": url}},
                        ],
                    }
                ],
            )
            assert reply.usage is not None
            assert reply.usage.completion_tokens == 8
            streamed = client.chat.completions.create(
                model=model,
                max_tokens=8,
                temperature=0,
                stream=True,
                messages=[{"role": "user", "content": "Hello"}],
            )
            answers.append("".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices))
            box.slots.go_live(box.slots.idle)
            wait_for(lambda: box.get("/version").headers["x-slot"] == box.slots.live)
    assert answers[0] != answers[1]  # two versions, two answers


def test_clients_wait_while_no_process_accepts(box: Box) -> None:
    """The socket stays open between two generations: a client that connects meanwhile is answered by the next one."""
    box.systemctl("stop", "glm@blue.service")
    with socket.create_connection(box.listen.split(":"), timeout=60) as client:  # type: ignore[arg-type]
        client.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b""
        while more := client.recv(65536):
            answer += more
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"version":"1.0.0"' in answer
    assert box.show("glm@blue.service", "ActiveState") == "active"  # the connection started the live slot


def test_a_second_rollout_is_refused_while_one_is_under_way(box: Box) -> None:
    """A second command exits with 7 and changes nothing."""
    with _deploying(box, "1.1.0"):
        box.glmctl("deploy", "1.1.0", expect=7)
        box.glmctl("reload", expect=7)


def test_a_drain_deadline_cuts_and_counts(box: Box) -> None:
    """Responses that take longer than --drain are cut and counted as failed and cut; the exit code is 6."""
    body = {"messages": [{"role": "user", "content": "long"}], "max_tokens": 50_000, "temperature": 0, "stream": True}
    asked = 4  # each takes longer than the candidate's load
    with ThreadPoolExecutor(asked) as pool:
        answers = [pool.submit(_ends_whole, box, body) for _ in range(asked)]
        box.glmctl("deploy", "1.1.0", "--bake", "0", "--drain", "0", expect=6)
        cut = sum(not answer.result() for answer in answers)
    receipt = box.json("history")["rollouts"][-1]["receipt"]
    assert cut > 0
    assert (receipt["cut"], receipt["lost"], receipt["adds_up"]) == (cut, cut, True)
    assert box.get("/version").json()["version"] == "1.1.0"


def _ends_whole(box: Box, body: dict[str, Any]) -> bool:
    try:
        return "[DONE]" in httpx.post(f"http://{box.listen}/v1/chat/completions", json=body, timeout=60).text
    except httpx.HTTPError:
        return False


@contextmanager
def _deploying(box: Box, version: str) -> Iterator[None]:
    deploy = box.begin("deploy", version, "--bake", "0")
    box.await_phase(deploy, "start")
    yield
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 0, out


def _text(answer: httpx.Response | str) -> str:
    lines = (answer if isinstance(answer, str) else answer.text).splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


@pytest.mark.long
def test_a_reload_brings_new_settings(box: Box) -> None:
    """The next generation has the settings that glm.env has at the time of the reload, at every reload."""
    for workers in (2, 1):
        box.configure(threads=1, workers=workers)
        box.glmctl("reload")
        assert len(box.generation("blue").alive_workers) == workers
        assert len([one for one in box.generations("blue") if one.is_alive]) == 1
