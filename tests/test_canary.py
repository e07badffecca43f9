"""The canary: a share of the requests, on connections that stay open, until it is promoted, aborted, or over."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

import httpx
import pytest

from service.contract.canary_file import Canary, CanaryFile
from tests.box import Box, kill, wait_for

CONNECTIONS = 50
REQUESTS = 10_000


@contextmanager
def canary(box: Box, *words: str) -> Iterator[Popen[str]]:
    """Run a deploy of 1.1.0 in its canary; the canary is aborted at the end of the block."""
    deploy = box.begin("deploy", "1.1.0", "--bake", "0", *words)
    try:
        box.await_phase(deploy, "canary")
        wait_for(CanaryFile(box.host.runtime).read)
        yield deploy
    finally:
        CanaryFile(box.host.runtime).remove()
        deploy.communicate(timeout=60)


async def ask(box: Box, requests: int, path: str = "/version") -> Counter[str]:
    """Send requests on connections that must stay open; returns the number of responses of each slot, all of 200."""
    host, port = box.listen.split(":")
    slots: Counter[str] = Counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(requests // CONNECTIONS):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            assert head[0] == "http/1.1 200 ok"
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            assert "connection" not in headers
            await reader.readexactly(int(headers["content-length"]))
            slots[headers["x-slot"]] += 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return slots


def test_each_request_is_assigned_at_random(box: Box) -> None:
    """10,000 requests on 50 connections at each of 1, 10, 25 and 50 %: the share is right, no request is lost."""
    with canary(box, "--canary", "1", "--step", "pause"):
        for step, weight in enumerate((1, 10, 25, 50), start=2):
            CanaryFile(box.host.runtime).write(Canary("green", weight, step))
            slots = asyncio.run(ask(box, REQUESTS))
            assert slots.total() == REQUESTS
            share = weight / 100
            spread = 3.9 * math.sqrt(REQUESTS * share * (1 - share))  # one run in 10,000 lies beyond
            assert abs(slots["green"] - REQUESTS * share) <= spread, (weight, slots)


def test_steps_follow_each_other_and_end_in_the_cutover(box: Box) -> None:
    """Each step lasts as long as planned; the record has a phase for each, and the canary file is gone afterwards."""
    record = box.json("deploy", "1.1.0", "--canary", "20,60", "--step", "500ms", "--bake", "0")
    assert [step["phase"] for step in record["steps"]].count("canary") == 2
    assert record["outcome"] == "done"
    assert CanaryFile(box.host.runtime).read() is None
    assert box.get("/version").json()["version"] == "1.1.0"


def test_promote_goes_on_to_the_next_step_and_then_to_the_cutover(box: Box) -> None:
    """Each `promote` ends one step."""
    with canary(box, "--canary", "10,50", "--step", "pause") as deploy:
        assert box.json("promote")["promoted"] == 10
        wait_for(lambda: (canary := CanaryFile(box.host.runtime).read()) and canary.weight == 50)
        box.glmctl("promote")
        deploy.wait(timeout=60)
    assert deploy.returncode == 0
    assert box.get("/version").json()["version"] == "1.1.0"


def test_abort_returns_all_requests_to_the_live_slot(box: Box) -> None:
    """The live slot answers the next 1,000 requests, the candidate's unit is stopped, and the deploy exits with 5."""
    with canary(box, "--canary", "50", "--step", "pause") as deploy:
        assert asyncio.run(ask(box, 1000))["green"]
        assert {name: slot["share"] for name, slot in box.json("status")["slots"].items()} == {"blue": 50, "green": 50}
        box.glmctl("abort")
        wait_for(lambda: box.generation("green").connections == 0)
        assert asyncio.run(ask(box, 1000)) == {"blue": 1000}
        deploy.wait(timeout=60)
    assert deploy.returncode == 5
    assert box.show("glm@green.service", "ActiveState") == "inactive"
    assert box.json("history")["rollouts"][-1]["outcome"] == "rolled back"
    refused = box.glmctl("promote", expect=3)
    assert "no canary is under way" in refused.stderr


@pytest.mark.parametrize("share", ["--canary", pytest.param("--mirror", marks=pytest.mark.long)])
def test_abort_works_until_the_rename(box: Box, share: str) -> None:
    """An abort after the last step, here by a pre_cutover hook, still prevents the cutover."""
    box.host.policy.write_text('[hooks]\npre_cutover = ["glmctl abort"]\n')
    stderr = box.glmctl("deploy", "1.1.0", share, "50", "--step", "1s", "--bake", "0", expect=5).stderr
    assert "the operator aborted it" in stderr
    record = box.json("history")["rollouts"][-1]
    assert (record["outcome"], record["steps"][-1]["phase"]) == ("rolled back", "cutover")
    assert asyncio.run(ask(box, 500)) == {"blue": 500}


def test_abort_holds_or_is_refused_at_any_moment(box: Box) -> None:
    """Over two steps, the cutover and the bake: either the live slot stays, or it is too late, with exit code 3."""
    outcomes = set()
    for moment in (0.4, 0.8, 1.6):
        live = box.slots.live
        version = {"1.0.0": "1.1.0", "1.1.0": "1.0.0"}[box.slots.version(live or "") or ""]
        deploy = box.begin("deploy", version, "--canary", "10,50", "--step", "500ms", "--bake", "2s")
        box.await_phase(deploy, "canary")
        time.sleep(moment)
        done = box.glmctl("abort", expect=None)
        out, _ = deploy.communicate(timeout=60)
        assert (done.returncode, deploy.returncode) in {(0, 5), (3, 0)}, (done.stderr, out)
        assert (box.slots.live == live) == (done.returncode == 0)
        assert done.returncode == 0 or "`glmctl rollback`" in done.stderr, done.stderr
        assert CanaryFile(box.host.runtime).read() is None
        outcomes.add(done.returncode)
    assert 0 in outcomes


def test_a_candidate_that_dies_ends_its_canary(box: Box) -> None:
    """The live slot answers all requests; the rollout exits with 5."""
    with canary(box, "--canary", "50", "--step", "pause") as deploy:
        box.drop_in("[Service]\nRestart=no\n")
        kill(box.generation("green").master)
        deploy.wait(timeout=60)
        assert asyncio.run(ask(box, 500)) == {"blue": 500}
    assert deploy.returncode == 5
    assert box.get("/version").json()["version"] == "1.0.0"


def test_an_abort_ends_the_canary_of_a_killed_controller(box: Box) -> None:
    """The share holds without a controller; `status` reports it, and after `abort` the live slot answers everything."""
    with canary(box, "--canary", "50", "--step", "pause") as deploy:
        kill(deploy.pid)
        deploy.wait(timeout=60)
        assert asyncio.run(ask(box, 500))["green"]
        assert "interrupted in canary" in box.glmctl("status").stderr
        assert CanaryFile(box.host.runtime).read() is not None
        assert "green was stopped, 1.0.0 serves as before" in box.glmctl("abort").stderr
        assert CanaryFile(box.host.runtime).read() is None
        assert asyncio.run(ask(box, 500)) == {"blue": 500}
    box.glmctl("deploy", "1.1.0", "--bake", "0")


async def ask_pinned(box: Box, pins: list[str], *, size: int, pieces: int) -> list[tuple[str, str, int]]:
    """Post `size` bytes for each pin on one connection; returns pin, slot and status of each response."""
    host, port = box.listen.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answers = []
    body = b'{"messages": [{"role": "user", "content": "' + b"a" * size + b'"}], "max_tokens": 1}'
    for pin in pins:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-GLM-Slot: {pin}\r\n"
        request = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        step = -(-len(request) // pieces)
        for start in range(0, len(request), step):
            writer.write(request[start : start + step])
            await writer.drain()
            await asyncio.sleep(0.002)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        await reader.readexactly(int(headers["content-length"]))
        answers.append((pin, headers["x-slot"], int(lines[0].split()[1])))
    writer.close()
    return answers


@pytest.mark.parametrize(("size", "pieces"), [(10, 1), (10, 40), (5 << 20, 1), (5 << 20, 200)])
def test_a_pinned_request_reaches_its_slot(canary_box: Box, size: int, pieces: int) -> None:
    """X-GLM-Slot decides, in one segment or many, with a body of megabytes; the connection stays open."""

    async def scenario() -> list[list[tuple[str, str, int]]]:
        pins = ["candidate", "live", "live", "candidate", "candidate", "live"]
        return await asyncio.gather(*(ask_pinned(canary_box, pins, size=size, pieces=pieces) for _ in range(4)))

    for answers in asyncio.run(scenario()):
        for pin, slot, status in answers:
            assert slot == {"live": "blue", "candidate": "green"}[pin]
            assert status == (200 if size < 100 else 400)  # more than the model takes


@pytest.fixture(scope="module")
def canary_box(stocked_live: Box) -> Iterator[Box]:
    """A host with a canary of 50 %."""
    with canary(stocked_live, "--canary", "50", "--step", "pause"):
        yield stocked_live


def test_a_canary_is_ready_whichever_slot_answers(canary_box: Box) -> None:
    """A balancer's health check does not fail because the candidate got it, whose gate is closed."""
    assert set(asyncio.run(ask(canary_box, 500, "/readyz"))) == {"blue", "green"}


def test_a_key_sticks_to_one_side(canary_box: Box) -> None:
    """With --sticky, requests with one key reach one slot on every connection, and the share applies to keys."""
    file = CanaryFile(canary_box.host.runtime)
    file.write(Canary("green", 30, 2, sticky="authorization"))
    try:
        met: dict[int, set[str]] = {}
        with httpx.Client(base_url=f"http://{canary_box.listen}", trust_env=False) as one:
            for key in range(300):
                headers = {"Authorization": f"Bearer {key}"}
                met[key] = {one.get("/version", headers=headers).headers["x-slot"]}
                if key % 10 == 0:
                    met[key].add(canary_box.get("/version", headers=headers).headers["x-slot"])
    finally:
        file.write(Canary("green", 50, 3))
    assert all(len(slots) == 1 for slots in met.values())
    assert 45 <= sum(slots == {"green"} for slots in met.values()) <= 135  # of 300; beyond: one run in 10^8


@pytest.mark.parametrize("shares", ["0", "50,10", "101", "ten", "10,10", "nan"])
def test_invalid_shares_are_refused(stocked_live: Box, shares: str) -> None:
    """They are a usage error, and the message shows the form."""
    done = stocked_live.glmctl("deploy", "1.1.0", "--canary", shares, expect=2)
    assert "percentages" in done.stderr


def test_a_canary_without_handoff_is_refused(box: Box) -> None:
    """Without handover the candidate would get no requests: the preflight refuses it, exit code 3."""
    box.configure(threads=1, handoff="false")
    assert "GLM_HANDOFF" in box.glmctl("deploy", "1.1.0", "--canary", "10", expect=3).stderr
