"""Batches across cutovers, reloads and kills, on a real systemd with the real engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from openai import OpenAI
from openai.types import Batch

from tests.batch_fixtures import create_batch, jsonl, parse_jsonl, request_line, wait_for_end
from tests.box import Box, kill, wait_for

REQUESTS = 48
MAX_TOKENS = 150


@pytest.fixture
def client(box: Box) -> Iterator[OpenAI]:
    """The official client with its default retries, as a killed worker closes its connections."""
    with OpenAI(base_url=f"http://{box.listen}/v1", api_key="none", max_retries=2, timeout=60) as client:
        yield client


def started_batch(client: OpenAI, count: int = REQUESTS) -> Batch:
    """Create a batch and wait until some of its requests are completed."""
    body = {"max_tokens": MAX_TOKENS, "temperature": 0}
    lines = [request_line(f"task-{number}", f"Say {number}.") for number in range(count)]
    batch = create_batch(client, jsonl(*({**entry, "body": {**entry["body"], **body}} for entry in lines)))
    wait_for(lambda: completed(client, batch) >= 3, 60, "three completed requests")
    return batch


def completed(client: OpenAI, batch: Batch) -> int:
    """The number of completed requests of an unfinished batch."""
    current = client.batches.retrieve(batch.id)
    assert current.status in ("validating", "in_progress"), current
    assert current.request_counts is not None
    assert current.request_counts.failed == 0
    return current.request_counts.completed


def lines_per_version(client: OpenAI, batch: Batch) -> Counter[str]:
    """Wait for the end, check that each request has one result, and count the lines of each version."""
    ended = wait_for_end(client, batch.id, 180)
    assert (ended.status, ended.error_file_id) == ("completed", None)
    assert ended.output_file_id is not None
    output = parse_jsonl(client.files.content(ended.output_file_id).content)
    assert [entry["custom_id"] for entry in output] == [f"task-{number}" for number in range(REQUESTS)]
    for entry in output:
        assert entry["response"]["body"]["system_fingerprint"] == entry["response"]["version"]
        assert entry["response"]["slot"] == {"1.0.0": "blue", "1.1.0": "green"}[entry["response"]["version"]]
    return Counter(entry["response"]["version"] for entry in output)


def test_cutover_and_back(box: Box, client: OpenAI) -> None:
    """After each cutover the live slot continues the batch; each line names the version that answered."""
    with box.baking("1.1.0"):
        box.slots.go_live("blue")
        batch = started_batch(client)
        for slot in ("green", "blue"):
            before = completed(client, batch)
            box.slots.go_live(slot)
            wait_for(lambda before=before: completed(client, batch) >= before + 4, 30)  # type: ignore[misc]
        box.slots.go_live("green")
        assert set(lines_per_version(client, batch)) == {"1.0.0", "1.1.0"}
        box.glmctl("rollback")


def test_rollout_does_not_wait_for_a_batch(box: Box, client: OpenAI) -> None:
    """A deploy during a batch drains within 5 s and cuts no request; the new version continues the batch."""
    batch = started_batch(client, 2000)
    receipt = box.json("deploy", "1.1.0", "--bake", "0", "--drain", "5s")
    assert receipt["outcome"] == "done"
    before = completed(client, batch)
    wait_for(lambda: completed(client, batch) >= before + 4, 60)
    client.batches.cancel(batch.id)
    ended = wait_for_end(client, batch.id)
    assert ended.output_file_id is not None
    output = parse_jsonl(client.files.content(ended.output_file_id).content)
    assert len({entry["custom_id"] for entry in output}) == len(output)
    assert {entry["response"]["version"] for entry in output} == {"1.0.0", "1.1.0"}


def test_reload(box: Box, client: OpenAI) -> None:
    """After a reload during a batch the next generation continues it."""
    batch = started_batch(client)
    box.glmctl("reload")
    assert lines_per_version(client, batch) == {"1.0.0": REQUESTS}


def test_killed_worker(box: Box, client: OpenAI) -> None:
    """After kill -9 of the worker, twice, results are kept and its running requests are processed again."""
    batch = started_batch(client)
    for _ in range(2):
        before = completed(client, batch)
        kill(box.generation("blue").alive_workers[0].pid)
        wait_for(lambda before=before: completed(client, batch) >= before + 3, 60)  # type: ignore[misc]
        assert completed(client, batch) >= before
    assert lines_per_version(client, batch) == {"1.0.0": REQUESTS}


def test_killed_slot(box: Box, client: OpenAI) -> None:
    """After kill -9 of all processes of the slot the batch continues when the slot is restarted."""
    batch = started_batch(client)
    before = completed(client, batch)
    box.systemctl("kill", "--signal=KILL", "glm@blue.service")
    wait_for(lambda: completed(client, batch) > before, 60)
    assert lines_per_version(client, batch) == {"1.0.0": REQUESTS}
