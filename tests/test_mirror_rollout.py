"""The mirror in a rollout: the candidate is sent its share, clients notice nothing, and the analysis compares."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import pytest

from deploy.analysis.samples import Samples
from deploy.journal.journal import Journal
from service.contract.canary_file import CanaryFile
from service.routing import mirror as module
from service.timing import CHAT_PATH as CHAT
from tests.box import Box, kill, wait_for


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
        assert abs(asked - requests * share) <= spread + module.MAX_IN_FLIGHT, (len(found), asked)
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
            assert dropped(live) >= before + 30 - module.MAX_IN_FLIGHT
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


@pytest.mark.long
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
        assert "limit 0.001 s" in told.stderr
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
