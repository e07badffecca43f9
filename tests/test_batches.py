"""Files and batches over HTTP, asked by the official client."""

from __future__ import annotations

import asyncio
import io
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import example, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from openai import OpenAI
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.types import Message

from service.batches import lines
from service.batches import schemas as documents
from service.batches.service import Office
from service.chat.errors import HANDLERS
from tests.office import (
    ENDPOINT,
    IDENTITY,
    Desk,
    FakeChat,
    await_end,
    begin,
    jsonl,
    line,
    read,
    refusal,
    requests,
    served,
    settings,
    upload,
)


@pytest.fixture
def chat() -> FakeChat:
    return FakeChat()


@pytest.fixture
def client(tmp_path: Path, chat: FakeChat) -> Iterator[OpenAI]:
    with served(tmp_path, chat) as client:
        yield client


def test_a_batch_from_upload_to_output(client: OpenAI, chat: FakeChat) -> None:
    """The official client uploads, begins, polls, reads output and errors, and deletes: all as OpenAI has it."""
    chat.fail["wrong"] = [refusal(400, "too long")]
    content = jsonl(line("a", "hello"), line("b", "wrong"), line("c", "世界"))
    file = client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(content), "in.jsonl", "batch")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content

    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"night": "3"}
    )
    assert batch.status == "validating"
    assert batch.expires_at == batch.created_at + 24 * 3600
    ended = await_end(client, batch.id)
    assert (ended.status, ended.metadata, ended.errors) == ("completed", {"night": "3"}, None)
    assert ended.request_counts is not None
    assert (ended.request_counts.total, ended.request_counts.completed, ended.request_counts.failed) == (3, 2, 1)
    assert ended.in_progress_at
    assert ended.finalizing_at
    assert ended.completed_at

    assert ended.output_file_id
    output = read(client.files.content(ended.output_file_id).content)
    assert [one["custom_id"] for one in output] == ["a", "c"]
    for one in output:
        assert set(one) == {"id", "custom_id", "response", "error"}
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        assert one["response"]["request_id"]
        assert (one["response"]["version"], one["response"]["slot"]) == ("1.2.0", "green")
    assert output[1]["response"]["body"]["choices"][0]["message"]["content"] == "re: 世界"

    assert ended.error_file_id
    (wrong,) = read(client.files.content(ended.error_file_id).content)
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


def test_answers_are_as_described(client: OpenAI) -> None:
    """Every answer has the shape that /openapi.json names for it, and no field more."""
    batch = await_end(client, begin(client, requests(1), metadata={"a": "b"}).id)
    bad = await_end(client, begin(client, b"{").id)
    for path, shape in (
        (f"files/{batch.input_file_id}", documents.File),
        ("files", documents.FilePage),
        (f"batches/{batch.id}", documents.Batch),
        (f"batches/{bad.id}", documents.Batch),
        ("batches", documents.BatchPage),
    ):
        said = httpx.get(f"{client.base_url}{path}", trust_env=False).json()
        assert TypeAdapter(shape).validate_python(said, strict=True) == said


def test_lists_are_paged(client: OpenAI) -> None:
    """Files and batches are listed newest first, page by page, as the client's iterators ask for them."""
    files = [upload(client, requests(1), f"{number}.jsonl") for number in range(5)]
    batches = [
        client.batches.create(input_file_id=file, endpoint=ENDPOINT, completion_window="24h").id for file in files
    ]
    page = client.batches.list(limit=2)
    assert (page.has_more, [one.id for one in page.data]) == (True, [batches[4], batches[3]])
    assert [one.id for one in page] == batches[::-1]
    assert [one.id for one in client.files.list(limit=2, purpose="batch")] == files[::-1]
    assert [one.id for one in client.files.list(limit=2, order="asc", purpose="batch")] == files
    assert client.files.list(purpose="fine-tune").data == []
    raw = client.get("/batches", cast_to=httpx.Response, options={"params": {"limit": 5}}).json()
    assert (raw["object"], raw["has_more"]) == ("list", False)
    assert (raw["first_id"], raw["last_id"]) == (batches[4], batches[0])
    for path in ("/files", "/batches"):
        for query in ({"limit": 0}, {"limit": "x"}, {"after": "nothing"}):
            with pytest.raises(openai.BadRequestError):
                client.get(path, cast_to=httpx.Response, options={"params": query})


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"custom_id": ', [("invalid_json_line", 1, None)]),
        (jsonl(line("a")) + b"\n" + b"[]\n\xff\n", [("invalid_json_line", 3, None), ("invalid_json_line", 4, None)]),
        (jsonl(line("a"), line("b"), line("a")), [("duplicate_custom_id", 3, "custom_id")]),
        (jsonl(line(None), line(""), line(7)), [("missing_required_parameter", 1, "custom_id"),
                                                ("invalid_custom_id", 2, "custom_id"),
                                                ("invalid_custom_id", 3, "custom_id")]),
        (jsonl(line("a", method="GET")), [("invalid_method", 1, "method")]),
        (jsonl(line("a", url="/v1/embeddings")), [("mismatched_url", 1, "url")]),
        (jsonl(line("a", body="x"), line("b", body=None)), [("invalid_body", 1, "body"),
                                                            ("missing_required_parameter", 2, "body")]),
        (requests(6), [("too_many_tasks", 6, None)]),
        (jsonl(line("a", "x" * 5000)), [("line_too_long", 1, None)]),
        (b"", [("empty_file", None, None)]),
        (b"\n \r\n", [("empty_file", None, None)]),
    ],
)  # fmt: skip
def test_a_bad_file_fails_its_batch_line_by_line(
    tmp_path: Path, content: bytes, found: list[tuple[str, int | None, str | None]]
) -> None:
    """What is wrong with an input file stands in the batch's errors, with the line's number; nothing of it is asked."""
    chat = FakeChat()
    with served(tmp_path, chat, max_batch_lines=5, max_body=4096) as client:
        batch = await_end(client, begin(client, content).id)
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.errors is not None
    assert [(error.code, error.line, error.param) for error in batch.errors.data or []] == found
    assert all(error.message for error in batch.errors.data or [])
    assert batch.output_file_id is batch.error_file_id is None
    assert not chat.asked


def test_odd_but_good_files_are_taken(client: OpenAI) -> None:
    """A byte order mark, CRLF, blank lines and a missing last newline are no errors."""
    content = b"\xef\xbb\xbf" + jsonl(line("a")).replace(b"\n", b"\r\n\r\n") + jsonl(line("b")).rstrip()
    batch = await_end(client, begin(client, content).id)
    assert batch.status == "completed"
    assert batch.output_file_id
    assert [one["custom_id"] for one in read(client.files.content(batch.output_file_id).content)] == ["a", "b"]


PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"\n", b"\r\n", b"{", b"}", b"[" * 300, b'"\\ud800"', b"NaN", b"\x00", b"\xef\xbb\xbf"]),
    st.builds(
        lambda custom_id, more: json.dumps(line(custom_id) | more).encode() + b"\n",
        st.one_of(st.text(max_size=6), st.none(), st.integers()),
        st.dictionaries(st.sampled_from(["method", "url", "body", "x"]), st.one_of(st.none(), st.text(max_size=3))),
    ),
)


@given(st.lists(PIECES, max_size=12).map(b"".join), st.integers(1, 8), st.sampled_from([16, 120, 10_000]))
@example(b'{"custom_id":"\\ud800","method":"POST","url":"/v1/chat/completions","body":{}}', 5, 10_000)
@example(b"[" * 100_000, 5, 1 << 20)
@example(b"1" * 5000, 5, 1 << 20)
def test_any_bytes_are_a_batch_or_a_list_of_errors(content: bytes, max_lines: int, max_length: int) -> None:
    """Whatever the bytes: errors that name lines of the file, or requests that can be read back; never an exception."""
    reading = lines.check(io.BytesIO(content), max_lines=max_lines, max_length=max_length)
    assert reading is not None
    assert bool(reading.errors) or bool(reading.tasks)
    many = content.count(b"\n") + 1
    for error in reading.errors:
        json.dumps(error).encode()
        assert error["code"] == "empty_file" or 1 <= error["line"] <= many
    if not reading.errors:
        assert len({task.custom_id for task in reading.tasks}) == len(reading.tasks) <= max_lines
        for task in reading.tasks:
            assert isinstance(lines.document(content[task.offset :][: task.length]), dict)
            task.custom_id.encode()


@settings_of_hypothesis(max_examples=30, deadline=None)
@given(content=st.lists(PIECES, max_size=8).map(b"".join))
def test_any_upload_ends_as_a_batch_that_failed_or_began(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Through the database: any bytes make a batch that began or failed with errors, and can be told as JSON."""
    desk = Desk(tmp_path_factory.mktemp("state"), max_batch_lines=5)
    batch_id = desk.order(content)
    claims = desk.claims("b/1/1")
    turn = claims.take_turn((), (), room=0, chore=None)
    assert turn.chore is not None
    desk.batches.validate(batch_id, "b/1/1", lambda: True)
    batch = desk.batches.get(batch_id)
    assert batch["status"] == ("failed" if batch["errors"] else "in_progress")
    json.dumps(batch).encode()
    desk.database.close()


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
def test_a_bad_order_is_refused(client: OpenAI, body: Any, param: str | None) -> None:
    """What is wrong with a request for a batch is a 400 that names the field."""
    if isinstance(body, dict):
        good = {"input_file_id": upload(client, requests(1)), "endpoint": ENDPOINT, "completion_window": "24h"}
        body = json.dumps(good | body if body else {})
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{client.base_url}batches", content=body, headers=headers, trust_env=False)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert client.batches.list().data == []


def test_what_is_not_there_is_not_found(client: OpenAI) -> None:
    """Unknown ids are 404s, paths in them included; a batch of a file that is none of its kind is refused."""
    for ask in (
        lambda: client.files.retrieve("file-x"),
        lambda: client.files.content("..%2fbatches.db"),
        lambda: client.files.delete("file-x"),
        lambda: client.batches.retrieve("batch_x"),
        lambda: client.batches.cancel("batch_x"),
        lambda: client.batches.create(input_file_id="file-x", endpoint=ENDPOINT, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    batch = await_end(client, begin(client, requests(1)).id)
    assert batch.output_file_id
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.batches.create(input_file_id=batch.output_file_id, endpoint=ENDPOINT, completion_window="24h")


def test_a_file_in_use_stays(client: OpenAI, chat: FakeChat) -> None:
    """The input of an unfinished batch cannot be deleted; that of an ended one can."""
    chat.pause = 0.5
    batch = begin(client, requests(1))
    with pytest.raises(openai.BadRequestError, match=batch.id):
        client.files.delete(batch.input_file_id)
    await_end(client, batch.id)
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
        (b"", BOUNDARY, 400),
        (b"rubbish", BOUNDARY, 400),
        (PURPOSE + FILE + b"--x--\r\n", {"content-type": "multipart/form-data"}, 415),
        (b"{}", {"content-type": "application/json"}, 415),
        (PURPOSE + FILE.replace(b"abc", b"abcdefghi") + b"--x--\r\n", BOUNDARY, 413),
        (PURPOSE + FILE.replace(b"abc", b"a" * 100_000) + b"--x--\r\n", BOUNDARY, 413),
    ],
)
def test_forms_good_and_bad(tmp_path: Path, content: bytes, headers: dict[str, str], status: int) -> None:
    """A form is taken whole or refused with an error object, and what was refused leaves no byte behind."""
    with served(tmp_path, max_file=8) as client:
        answer = httpx.post(f"{client.base_url}files", content=content, headers=headers, trust_env=False)
        assert answer.status_code == status, answer.text
        assert len(client.files.list().data) == (status == 200)
    if status != 200:
        assert answer.json()["error"]["message"]
        assert not list((tmp_path / "files").iterdir())


def test_files_expire(client: OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file lives as long as its client asked, thirty days if it did not ask; then a sweep takes its bytes."""
    said = client.files.create(
        file=("a", b"a"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert said.expires_at == said.created_at + 3600
    silent = client.files.create(file=("a", b"a"), purpose="batch")
    assert silent.expires_at == silent.created_at + 30 * 24 * 3600
    with pytest.raises(openai.BadRequestError, match="seconds"):
        client.files.create(file=("a", b"a"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 1})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    assert [one.id for one in client.files.list()] == [silent.id]
    desk = Desk(tmp_path)
    desk.files.sweep()
    assert [path.name for path in (tmp_path / "files").iterdir()] == [silent.id]


def test_an_upload_is_never_in_memory(tmp_path: Path) -> None:
    """64 MB go to the disk while a few chunks of them are in memory."""
    office = Office(FakeChat(), IDENTITY, settings(tmp_path), serving=lambda: False)
    app = Starlette(routes=office.routes, exception_handlers=HANDLERS)
    chunk = b"x" * 65536

    async def body() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": PURPOSE + FILE.removesuffix(b"abc\r\n"), "more_body": True}
        for _ in range(1024):
            yield {"type": "http.request", "body": chunk, "more_body": True}
        yield {"type": "http.request", "body": b"\r\n--x--\r\n", "more_body": False}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        messages = body()
        headers = [(b"content-type", BOUNDARY["content-type"].encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/files", "headers": headers, "query_string": b""}
        await app(scope, messages.__anext__, send)

    tracemalloc.start()
    try:
        asyncio.run(ask())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent[0]["status"] == 200, sent
    assert json.loads(sent[1]["body"])["bytes"] == 64 << 20
    assert peak < 8 << 20, peak


def test_cancelling_keeps_what_is_done(client: OpenAI, chat: FakeChat) -> None:
    """A cancelled batch breaks off what it is doing; its files hold what was done and name what was not."""
    batch = begin(client, requests(30))
    chat.pause = 0.2
    while not (batch.request_counts and batch.request_counts.completed):
        batch = client.batches.retrieve(batch.id)
        time.sleep(0.02)
    chat.pause = 60
    time.sleep(0.5)
    asked = time.monotonic()
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = await_end(client, batch.id)
    assert time.monotonic() - asked < 3
    assert ended.status == "cancelled"
    assert ended.cancelling_at
    assert ended.cancelled_at
    assert chat.cancelled > 0
    assert ended.request_counts
    assert ended.output_file_id
    assert ended.error_file_id
    done = read(client.files.content(ended.output_file_id).content)
    rest = read(client.files.content(ended.error_file_id).content)
    assert 0 < len(done) == ended.request_counts.completed < 30
    assert {one["error"]["code"] for one in rest} == {"batch_cancelled"}
    assert sorted(one["custom_id"] for one in done + rest) == sorted(f"task-{number}" for number in range(30))
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.batches.cancel(batch.id)


def test_cancelled_before_it_began(tmp_path: Path) -> None:
    """A batch that nobody works on yet is cancelled with the first look, and has no files."""
    desk = Desk(tmp_path)
    batch_id = desk.order(requests(3))
    assert desk.batches.cancel(batch_id)["status"] == "cancelling"
    with served(tmp_path) as client:
        batch = await_end(client, batch_id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)
