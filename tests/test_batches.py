"""The routes of batches, called by the official client."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from pydantic import TypeAdapter

from service.batches import schemas
from tests.batch_fixtures import (
    ENDPOINT,
    BatchStore,
    FakeChat,
    api_error,
    create_batch,
    jsonl,
    parse_jsonl,
    request_line,
    request_lines,
    served,
    upload,
    wait_for_end,
)


@pytest.fixture
def chat() -> FakeChat:
    return FakeChat()


@pytest.fixture
def client(tmp_path: Path, chat: FakeChat) -> Iterator[OpenAI]:
    with served(tmp_path, chat) as client:
        yield client


def test_batch_lifecycle(client: OpenAI, chat: FakeChat) -> None:
    """Upload, creation, polling, output and error files and deletion work with the official client."""
    chat.fail["wrong"] = [api_error(400, "too long")]
    content = jsonl(request_line("a", "hello"), request_line("b", "wrong"), request_line("c", "世界"))
    file = client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(content), "in.jsonl", "batch")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content

    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"night": "3"}
    )
    assert batch.status == "validating"
    assert batch.expires_at == batch.created_at + 24 * 3600
    ended = wait_for_end(client, batch.id)
    assert (ended.status, ended.metadata, ended.errors) == ("completed", {"night": "3"}, None)
    assert ended.request_counts is not None
    assert (ended.request_counts.total, ended.request_counts.completed, ended.request_counts.failed) == (3, 2, 1)
    assert ended.in_progress_at
    assert ended.finalizing_at
    assert ended.completed_at

    assert ended.output_file_id
    output = parse_jsonl(client.files.content(ended.output_file_id).content)
    assert [entry["custom_id"] for entry in output] == ["a", "c"]
    for entry in output:
        assert set(entry) == {"id", "custom_id", "response", "error"}
        assert entry["error"] is None
        assert entry["response"]["status_code"] == 200
        assert entry["response"]["request_id"]
        assert (entry["response"]["version"], entry["response"]["slot"]) == ("1.2.0", "green")
    assert output[1]["response"]["body"]["choices"][0]["message"]["content"] == "re: 世界"

    assert ended.error_file_id
    (wrong,) = parse_jsonl(client.files.content(ended.error_file_id).content)
    assert (wrong["custom_id"], wrong["response"]["status_code"]) == ("b", 400)
    assert wrong["response"]["body"]["error"]["message"] == "too long"
    assert wrong["response"]["version"] == "1.2.0"

    assert client.files.retrieve(ended.output_file_id).purpose == "batch_output"
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    assert chat.priorities == {"batch"}


def test_responses_match_openapi(client: OpenAI) -> None:
    """Every response has exactly the fields that /openapi.json declares."""
    batch = wait_for_end(client, create_batch(client, request_lines(1), metadata={"a": "b"}).id)
    bad = wait_for_end(client, create_batch(client, b"{").id)
    for path, shape in (
        (f"files/{batch.input_file_id}", schemas.File),
        ("files", schemas.FilePage),
        (f"batches/{batch.id}", schemas.Batch),
        (f"batches/{bad.id}", schemas.Batch),
        ("batches", schemas.BatchPage),
    ):
        document = httpx.get(f"{client.base_url}{path}", trust_env=False).json()
        assert TypeAdapter(shape).validate_python(document, strict=True) == document


def test_pagination(client: OpenAI) -> None:
    """Files and batches are listed newest first, page by page, as the client's iterators request them."""
    files = [upload(client, request_lines(1), f"{number}.jsonl") for number in range(5)]
    batches = [
        client.batches.create(input_file_id=file, endpoint=ENDPOINT, completion_window="24h").id for file in files
    ]
    page = client.batches.list(limit=2)
    assert (page.has_more, [entry.id for entry in page.data]) == (True, [batches[4], batches[3]])
    assert [entry.id for entry in page] == batches[::-1]
    assert [entry.id for entry in client.files.list(limit=2, purpose="batch")] == files[::-1]
    assert [entry.id for entry in client.files.list(limit=2, order="asc", purpose="batch")] == files
    assert client.files.list(purpose="fine-tune").data == []
    raw = client.get("/batches", cast_to=httpx.Response, options={"params": {"limit": 5}}).json()
    assert (raw["object"], raw["has_more"]) == ("list", False)
    assert (raw["first_id"], raw["last_id"]) == (batches[4], batches[0])
    for path in ("/files", "/batches"):
        for query in ({"limit": 0}, {"limit": "x"}, {"after": "nothing"}):
            with pytest.raises(openai.BadRequestError):
                client.get(path, cast_to=httpx.Response, options={"params": query})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input_file_id"),
        ({"input_file_id": 3}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ("[]", None),
        ("{", None),
        (b"\xff", None),
    ],
)
def test_invalid_batch_parameters(client: OpenAI, body: Any, param: str | None) -> None:
    """Invalid parameters of a batch are a 400 that names the field."""
    if isinstance(body, dict):
        good = {"input_file_id": upload(client, request_lines(1)), "endpoint": ENDPOINT, "completion_window": "24h"}
        body = json.dumps(good | body if body else {})
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{client.base_url}batches", content=body, headers=headers, trust_env=False)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert client.batches.list().data == []


def test_unknown_ids(client: OpenAI) -> None:
    """Unknown ids, and ids with paths, are 404s; an output file as the input of a batch is a 400."""
    for call in (
        lambda: client.files.retrieve("file-x"),
        lambda: client.files.content("..%2fbatches.db"),
        lambda: client.files.delete("file-x"),
        lambda: client.batches.retrieve("batch_x"),
        lambda: client.batches.cancel("batch_x"),
        lambda: client.batches.create(input_file_id="file-x", endpoint=ENDPOINT, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    batch = wait_for_end(client, create_batch(client, request_lines(1)).id)
    assert batch.output_file_id
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.batches.create(input_file_id=batch.output_file_id, endpoint=ENDPOINT, completion_window="24h")


def test_cancel_keeps_results(client: OpenAI, chat: FakeChat) -> None:
    """Cancelling a batch cancels its running requests; its files hold the results and name the other requests."""
    batch = create_batch(client, request_lines(30))
    chat.pause = 0.2
    while not (batch.request_counts and batch.request_counts.completed):
        batch = client.batches.retrieve(batch.id)
        time.sleep(0.02)
    chat.pause = 60
    time.sleep(0.5)
    cancelled_at = time.monotonic()
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = wait_for_end(client, batch.id)
    assert time.monotonic() - cancelled_at < 3
    assert ended.status == "cancelled"
    assert ended.cancelling_at
    assert ended.cancelled_at
    assert chat.cancelled > 0
    assert ended.request_counts
    assert ended.output_file_id
    assert ended.error_file_id
    done = parse_jsonl(client.files.content(ended.output_file_id).content)
    rest = parse_jsonl(client.files.content(ended.error_file_id).content)
    assert 0 < len(done) == ended.request_counts.completed < 30
    assert {entry["error"]["code"] for entry in rest} == {"batch_cancelled"}
    assert sorted(entry["custom_id"] for entry in done + rest) == sorted(f"task-{number}" for number in range(30))
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.batches.cancel(batch.id)


def test_cancel_before_validation(tmp_path: Path) -> None:
    """A batch that is cancelled before its validation ends at the first poll, without files."""
    store = BatchStore(tmp_path)
    batch_id = store.create(request_lines(3))
    assert store.batches.cancel(batch_id)["status"] == "cancelling"
    with served(tmp_path) as client:
        batch = wait_for_end(client, batch_id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)
