"""Files: uploads, expiry, deletion, and input files of batches."""

from __future__ import annotations

import asyncio
import io
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import example, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from openai import OpenAI
from starlette.types import Message

from service.api.application import Application
from service.batches import lines
from service.batches.service import BatchService
from tests.batch_fixtures import (
    IDENTITY,
    BatchStore,
    FakeChat,
    create_batch,
    jsonl,
    parse_jsonl,
    request_line,
    request_lines,
    served,
    settings,
    wait_for_end,
)


@pytest.fixture
def chat() -> FakeChat:
    return FakeChat()


@pytest.fixture
def client(tmp_path: Path, chat: FakeChat) -> Iterator[OpenAI]:
    with served(tmp_path, chat) as client:
        yield client


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"custom_id": ', [("invalid_json_line", 1, None)]),
        (jsonl(request_line("a")) + b"\n" + b"[]\n\xff\n", [("invalid_json_line", 3, None),
                                                            ("invalid_json_line", 4, None)]),
        (jsonl(request_line("a"), request_line("b"), request_line("a")), [("duplicate_custom_id", 3, "custom_id")]),
        (jsonl(request_line(None), request_line(""), request_line(7)), [("missing_required_parameter", 1, "custom_id"),
                                                ("invalid_custom_id", 2, "custom_id"),
                                                ("invalid_custom_id", 3, "custom_id")]),
        (jsonl(request_line("a", method="GET")), [("invalid_method", 1, "method")]),
        (jsonl(request_line("a", url="/v1/embeddings")), [("mismatched_url", 1, "url")]),
        (jsonl(request_line("a", body="x"), request_line("b", body=None)), [("invalid_body", 1, "body"),
                                                            ("missing_required_parameter", 2, "body")]),
        (request_lines(6), [("too_many_tasks", 6, None)]),
        (jsonl(request_line("a", "x" * 5000)), [("line_too_long", 1, None)]),
        (b"", [("empty_file", None, None)]),
        (b"\n \r\n", [("empty_file", None, None)]),
    ],
)  # fmt: skip
def test_invalid_input_file(tmp_path: Path, content: bytes, found: list[tuple[str, int | None, str | None]]) -> None:
    """The errors of an input file are in the failed batch, with line numbers, and no request is executed."""
    chat = FakeChat()
    with served(tmp_path, chat, max_batch_lines=5, max_body=4096) as client:
        batch = wait_for_end(client, create_batch(client, content).id)
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.errors is not None
    assert [(error.code, error.line, error.param) for error in batch.errors.data or []] == found
    assert all(error.message for error in batch.errors.data or [])
    assert batch.output_file_id is batch.error_file_id is None
    assert not chat.calls


def test_unusual_valid_input_files(client: OpenAI) -> None:
    """A byte order mark, CRLF, blank lines and a missing last newline are accepted."""
    content = b"\xef\xbb\xbf" + jsonl(request_line("a")).replace(b"\n", b"\r\n\r\n") + jsonl(request_line("b")).rstrip()
    batch = wait_for_end(client, create_batch(client, content).id)
    assert batch.status == "completed"
    assert batch.output_file_id
    assert [entry["custom_id"] for entry in parse_jsonl(client.files.content(batch.output_file_id).content)] == [
        "a",
        "b",
    ]


PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"\n", b"\r\n", b"{", b"}", b"[" * 300, b'"\\ud800"', b"NaN", b"\x00", b"\xef\xbb\xbf"]),
    st.builds(
        lambda custom_id, more: json.dumps(request_line(custom_id) | more).encode() + b"\n",
        st.one_of(st.text(max_size=6), st.none(), st.integers()),
        st.dictionaries(st.sampled_from(["method", "url", "body", "x"]), st.one_of(st.none(), st.text(max_size=3))),
    ),
)


@given(st.lists(PIECES, max_size=12).map(b"".join), st.integers(1, 8), st.sampled_from([16, 120, 10_000]))
@example(b'{"custom_id":"\\ud800","method":"POST","url":"/v1/chat/completions","body":{}}', 5, 10_000)
@example(b"[" * 100_000, 5, 1 << 20)
@example(b"1" * 5000, 5, 1 << 20)
def test_arbitrary_bytes_as_input(content: bytes, max_lines: int, max_length: int) -> None:
    """Any bytes give errors that name lines of the file, or requests that can be read back; never an exception."""
    parsed = lines.parse_input(io.BytesIO(content), max_lines=max_lines, max_length=max_length)
    assert parsed is not None
    assert bool(parsed.errors) or bool(parsed.tasks)
    line_count = content.count(b"\n") + 1
    for error in parsed.errors:
        json.dumps(error).encode()
        assert error["code"] == "empty_file" or 1 <= error["line"] <= line_count
    if not parsed.errors:
        assert len({task.custom_id for task in parsed.tasks}) == len(parsed.tasks) <= max_lines
        for task in parsed.tasks:
            assert isinstance(lines.request_body(content[task.offset :][: task.length]), dict)
            task.custom_id.encode()


@settings_of_hypothesis(max_examples=30, deadline=None)
@given(content=st.lists(PIECES, max_size=8).map(b"".join))
def test_arbitrary_bytes_through_the_database(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Any bytes give a batch that is in progress, or failed with errors, and is valid JSON."""
    store = BatchStore(tmp_path_factory.mktemp("state"), max_batch_lines=5)
    batch_id = store.create(content)
    claims = store.claims("b/1/1")
    assert claims.poll((), (), capacity=0, transition=None).transition is not None
    store.batches.validate(batch_id, "b/1/1", lambda: False)
    batch = store.batches.get(batch_id)
    assert batch["status"] == ("failed" if batch["errors"] else "in_progress")
    json.dumps(batch).encode()
    store.database.close()


def test_delete_file_in_use(client: OpenAI, chat: FakeChat) -> None:
    """The input file of an unfinished batch cannot be deleted; after the batch it can."""
    chat.pause = 0.5
    batch = create_batch(client, request_lines(1))
    with pytest.raises(openai.BadRequestError, match=batch.id):
        client.files.delete(batch.input_file_id)
    wait_for_end(client, batch.id)
    client.files.delete(batch.input_file_id)


BOUNDARY = {"content-type": "multipart/form-data; boundary=x"}

FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n'

PURPOSE = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (PURPOSE + FILE + b"--x--\r\n", BOUNDARY, 200),
        (FILE + PURPOSE + b"--x--\r\n", BOUNDARY, 200),
        (FILE + PURPOSE, BOUNDARY, 400),
        (PURPOSE + FILE, BOUNDARY, 400),
        (PURPOSE + FILE[:-3], BOUNDARY, 400),
        (FILE + b"--x--\r\n", BOUNDARY, 400),
        (PURPOSE + b"--x--\r\n", BOUNDARY, 400),
        (PURPOSE.replace(b"batch", b"vision") + FILE + b"--x--\r\n", BOUNDARY, 400),
        (PURPOSE + FILE + FILE + b"--x--\r\n", BOUNDARY, 400),
        (PURPOSE + FILE.replace(b'; filename="a"', b"") + b"--x--\r\n", BOUNDARY, 400),
        (PURPOSE.replace(b"batch", b"b" * 5000) + FILE + b"--x--\r\n", BOUNDARY, 400),
        (b"--x\r\n\r\n\r\n" * 15 + FILE + PURPOSE + b"--x--\r\n", BOUNDARY, 400),
        (b"--x\r\n\r\n\r\n" * 14 + FILE + PURPOSE + b"--x--\r\n", BOUNDARY, 200),
        (b"", BOUNDARY, 400),
        (b"rubbish", BOUNDARY, 400),
        (PURPOSE + FILE + b"--x--\r\n", {"content-type": "multipart/form-data"}, 415),
        (b"{}", {"content-type": "application/json"}, 415),
        (PURPOSE + FILE.replace(b"abc", b"abcdefghi") + b"--x--\r\n", BOUNDARY, 413),
        (PURPOSE + FILE.replace(b"abc", b"a" * 100_000) + b"--x--\r\n", BOUNDARY, 413),
    ],
)
def test_upload_forms(tmp_path: Path, content: bytes, headers: dict[str, str], status: int) -> None:
    """A form is stored completely or rejected with an error object; a rejected one leaves no content."""
    with served(tmp_path, max_file=8) as client:
        answer = httpx.post(f"{client.base_url}files", content=content, headers=headers, trust_env=False)
        assert answer.status_code == status, answer.text
        assert len(client.files.list().data) == (status == 200)
    if status != 200:
        assert answer.json()["error"]["message"]
        assert not list((tmp_path / "files").iterdir())


def test_file_expiry(client: OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file expires after the given seconds, or thirty days; then a sweep deletes its content."""
    expiring = client.files.create(
        file=("a", b"a"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert expiring.expires_at == expiring.created_at + 3600
    default = client.files.create(file=("a", b"a"), purpose="batch")
    assert default.expires_at == default.created_at + 30 * 24 * 3600
    with pytest.raises(openai.BadRequestError, match="seconds"):
        client.files.create(file=("a", b"a"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 1})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    assert [entry.id for entry in client.files.list()] == [default.id]
    store = BatchStore(tmp_path)
    store.files.sweep()
    assert [path.name for path in (tmp_path / "files").iterdir()] == [default.id]


def test_upload_memory(tmp_path: Path) -> None:
    """An upload of 64 MiB takes less than 8 MiB of memory."""
    service = BatchService(FakeChat(), IDENTITY, settings(tmp_path), serving=lambda: False)
    app = Application(service.routes, IDENTITY, service.lifespan)
    chunk = b"x" * 65536

    async def body() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": PURPOSE + FILE.removesuffix(b"abc\r\n"), "more_body": True}
        for _ in range(1024):
            yield {"type": "http.request", "body": chunk, "more_body": True}
        yield {"type": "http.request", "body": b"\r\n--x--\r\n", "more_body": False}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def post() -> None:
        messages = body()
        headers = [(b"content-type", BOUNDARY["content-type"].encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/files", "headers": headers, "query_string": b""}
        await app(scope, messages.__anext__, send)

    tracemalloc.start()
    try:
        asyncio.run(post())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent[0]["status"] == 200, sent
    assert json.loads(sent[1]["body"])["bytes"] == 64 << 20
    assert peak < 8 << 20, peak
