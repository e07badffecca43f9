"""Lists of files and batches, which are read and sent in slices, and refusals of clients with too many requests."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from starlette.requests import Request
from starlette.responses import StreamingResponse

from service.batches import api
from service.batches.database import Database
from service.batches.pages import Page, respond
from service.fairness import timed_pool
from service.fairness.client import Client
from service.fairness.timed_pool import TimedPool
from tests.batch_fixtures import create_batch, request_lines, served, upload, wait_for_end


class Rows:
    """Objects that can be deleted while they are listed."""

    def __init__(self, count: int, deleted: dict[int, set[int]]) -> None:
        self.kept = list(range(count))
        self.found: list[int] = []
        self.limits: list[int] = []
        self._deleted = deleted

    def find(self, *, after: str | int | None, limit: int) -> Page:
        self.limits.append(limit)
        left = [number for number in self.kept if after is None or number > int(after)]
        page = left[:limit]
        self.found += page
        self.kept = [number for number in self.kept if number not in self._deleted.get(len(self.limits), ())]
        return Page([{"id": f"é{number}"} for number in page], page[-1] if page else None, len(left) > limit)


async def _get(rows: Rows, limit: int, size: int, method: str = "GET", after: str | None = None) -> bytes:
    pool = TimedPool(2, "test", 1000)
    request = Request({"type": "http", "method": method})
    response = await respond(request, pool.calls(Client("a")), rows.find, after=after, limit=limit, size=size)
    if not isinstance(response, StreamingResponse):
        return bytes(response.body)
    pieces = [bytes(piece) async for piece in response.body_iterator]  # type: ignore[arg-type]
    pool.close()
    return b"".join(pieces)


@given(
    count=st.integers(0, 20),
    limit=st.integers(1, 25),
    size=st.integers(1, 8),
    deleted=st.dictionaries(st.integers(1, 8), st.sets(st.integers(0, 20))),
    after=st.none() | st.integers(0, 20).map(str),
)
@settings(max_examples=100, deadline=None)
def test_slices_make_one_list(
    count: int, limit: int, size: int, deleted: dict[int, set[int]], after: str | None
) -> None:
    """In slices of any size the list is the same, whatever is deleted meanwhile, and no slice is longer than that."""
    rows = Rows(count, deleted)
    document = json.loads(asyncio.run(_get(rows, limit, size, after=after)))
    ids = [f"é{number}" for number in rows.found]
    assert [one["id"] for one in document["data"]] == ids
    assert (document["first_id"], document["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    assert len(ids) <= limit
    assert max(rows.limits) <= size
    left = [number for number in rows.kept if number > max([*rows.found, int(after or -1)])]
    assert document["has_more"] or not left  # nothing is left out without a word
    if not deleted:
        assert rows.found == list(range(int(after or -1) + 1, count))[:limit]
        assert document["has_more"] is bool(left)


def test_a_head_is_answered_without_a_list() -> None:
    """HEAD reads one slice, whatever its limit."""
    rows = Rows(20, {})
    assert asyncio.run(_get(rows, 20, 2, "HEAD")) == b""
    assert rows.limits == [2]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAI]:
    monkeypatch.setattr(api, "FILES", 2)
    monkeypatch.setattr(api, "BATCHES", 2)
    with served(tmp_path) as client:
        yield client


def test_lists_in_slices_over_http(client: OpenAI) -> None:
    """A list that needs several slices has all objects in its order, and a cursor goes on behind it."""
    names = [upload(client, request_lines(1)) for _ in range(5)]
    assert [one.id for one in client.files.list(order="asc").data] == names
    page = client.files.list(limit=3)
    assert [one.id for one in page.data] == names[:1:-1]
    assert [one.id for one in page.get_next_page().data] == names[1::-1]
    created = [create_batch(client, request_lines(1)).id for _ in range(5)]
    assert [one.id for one in client.batches.list().data] == created[::-1]
    raw = httpx.get(f"{client.base_url}batches?limit=4", trust_env=False).json()
    assert (raw["first_id"], raw["last_id"], raw["has_more"]) == (created[4], created[1], True)
    answer = httpx.get(f"{client.base_url}files?after=nothing", trust_env=False)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


def _requests(client: OpenAI) -> Iterator[httpx.Response]:
    """Ask for each route, with bodies that can be read."""
    form: dict[str, Any] = {"files": {"file": ("a", b"a")}, "data": {"purpose": "batch"}}
    document = {"input_file_id": "a", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    more: dict[str, dict[str, Any]] = {"POST /v1/files": form, "POST /v1/batches": {"json": document}}
    routes = api.BatchRoutes.routes(object.__new__(api.BatchRoutes))
    for route in routes:
        for method in (route.methods or set()) - {"HEAD"}:
            url = str(client.base_url).removesuffix("/v1/") + re.sub("{.*}", "file-1", route.path)
            yield httpx.request(method, url, trust_env=False, **more.get(f"{method} {route.path}", {}))


def test_every_route_has_the_budget_of_its_client(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refuses a client with too many requests, and says when to come again; each works in the clients' threads."""
    monkeypatch.setattr(Database, "call", None)  # that is for the runner
    assert {answer.status_code for answer in _requests(client)} == {200, 404}
    monkeypatch.setattr(timed_pool, "MAX_WAITING", 0)
    answers = list(_requests(client))
    assert len(answers) == 9
    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["code"] == "queue_full"


def test_a_busy_client_is_not_refused(client: OpenAI) -> None:
    """Requests that follow each other as fast as they can are answered, however many there are."""
    batch = wait_for_end(client, create_batch(client, request_lines(3)).id)
    for _ in range(100):
        assert client.batches.retrieve(batch.id).status == "completed"
