"""A batch survives a cutover, a handover in place and any kill, on a real systemd with the real engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from openai import OpenAI
from openai.types import Batch

from tests.box import Box, kill, wait_for
from tests.office import await_end, begin, jsonl, line, read

MANY = 48
TOKENS = 150


@pytest.fixture
def client(box: Box) -> Iterator[OpenAI]:
    """The official client, which asks again when its connection dies with a worker, as it does by default."""
    with OpenAI(base_url=f"http://{box.listen}/v1", api_key="none", max_retries=2, timeout=60) as client:
        yield client


def begun(client: OpenAI, many: int = MANY) -> Batch:
    """A batch of which a little is done."""
    body = {"max_tokens": TOKENS, "temperature": 0}
    documents = [line(f"task-{number}", f"Say {number}.") for number in range(many)]
    batch = begin(client, jsonl(*({**one, "body": {**one["body"], **body}} for one in documents)))
    wait_for(lambda: completed(client, batch) >= 3, 60, "three requests done")
    return batch


def completed(client: OpenAI, batch: Batch) -> int:
    """How many requests are done; the batch must not be."""
    seen = client.batches.retrieve(batch.id)
    assert seen.status in ("validating", "in_progress"), seen
    assert seen.request_counts is not None
    assert seen.request_counts.failed == 0
    return seen.request_counts.completed


def whole(client: OpenAI, batch: Batch) -> Counter[str]:
    """Wait for the end; every request is answered, and once. How many lines each version answered."""
    ended = await_end(client, batch.id, 180)
    assert (ended.status, ended.error_file_id) == ("completed", None)
    assert ended.output_file_id is not None
    output = read(client.files.content(ended.output_file_id).content)
    assert [one["custom_id"] for one in output] == [f"task-{number}" for number in range(MANY)]
    for one in output:
        assert one["response"]["body"]["system_fingerprint"] == one["response"]["version"]
        assert one["response"]["slot"] == {"1.0.0": "blue", "1.1.0": "green"}[one["response"]["version"]]
    return Counter(one["response"]["version"] for one in output)


def test_across_a_cutover_and_back(box: Box, client: OpenAI) -> None:
    """The live slot takes up what the other had in progress, at the rename; each line names the version that did it."""
    with box.baking("1.1.0"):
        box.slots.go_live("blue")
        batch = begun(client)
        for slot in ("green", "blue"):
            before = completed(client, batch)
            box.slots.go_live(slot)
            wait_for(lambda before=before: completed(client, batch) >= before + 4, 30)  # type: ignore[misc]
        box.slots.go_live("green")
        assert set(whole(client, batch)) == {"1.0.0", "1.1.0"}
        box.glmctl("rollback")


def test_a_rollout_does_not_wait_for_a_batch(box: Box, client: OpenAI) -> None:
    """A deploy in the middle of a batch drains in no time and cuts nothing; the new version goes on with it."""
    batch = begun(client, 2000)
    receipt = box.json("deploy", "1.1.0", "--bake", "0", "--drain", "5s")
    assert receipt["outcome"] == "done"
    before = completed(client, batch)
    wait_for(lambda: completed(client, batch) >= before + 4, 60)
    client.batches.cancel(batch.id)
    ended = await_end(client, batch.id)
    assert ended.output_file_id is not None
    output = read(client.files.content(ended.output_file_id).content)
    assert len({one["custom_id"] for one in output}) == len(output)
    assert {one["response"]["version"] for one in output} == {"1.0.0", "1.1.0"}


def test_in_place(box: Box, client: OpenAI) -> None:
    """A handover in place in the middle of a batch: the next generation does the rest."""
    batch = begun(client)
    box.glmctl("reload")
    assert whole(client, batch) == {"1.0.0": MANY}


def test_the_live_worker_killed(box: Box, client: OpenAI) -> None:
    """Kill -9 of the live worker, twice: what was done stays done, what it had in progress is done by the next."""
    batch = begun(client)
    for _ in range(2):
        before = completed(client, batch)
        kill(box.generation("blue").living[0].pid)
        wait_for(lambda before=before: completed(client, batch) >= before + 3, 60)  # type: ignore[misc]
        assert completed(client, batch) >= before
    assert whole(client, batch) == {"1.0.0": MANY}


def test_everything_killed(box: Box, client: OpenAI) -> None:
    """Kill -9 of the whole slot, as a machine that loses power would: the batch goes on when the slot is back."""
    batch = begun(client)
    before = completed(client, batch)
    box.systemctl("kill", "--signal=KILL", "glm@blue.service")
    wait_for(lambda: completed(client, batch) > before, 60)
    assert whole(client, batch) == {"1.0.0": MANY}
