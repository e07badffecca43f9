"""Files and batches belong to the API key that made them."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.api.application import Application
from service.batches.service import BatchService
from tests.batch_fixtures import (
    ENDPOINT,
    IDENTITY,
    BatchStore,
    FakeChat,
    create_batch,
    request_lines,
    served,
    wait_for_end,
)
from tests.batch_fixtures import settings as service_settings

# None: no key. The last two are not "a": an API key is compared byte by byte, with its scheme.
KEYS = (None, "Bearer a", "Bearer b", "Bearer A", "Basic a")
SAME_AS_A = ("bearer a", "BEARER   a ")

WITH_FILE = {
    ("GET", "/v1/files/{id}"),
    ("GET", "/v1/files/{id}/content"),
    ("DELETE", "/v1/files/{id}"),
    ("GET", "/v1/files?after={id}"),
    ("POST", "/v1/batches"),  # as input_file_id
}
WITH_BATCH = {
    ("GET", "/v1/batches/{id}"),
    ("POST", "/v1/batches/{id}/cancel"),
    ("GET", "/v1/batches?after={id}"),
}
WITHOUT_ID = {("POST", "/v1/files"), ("GET", "/v1/files"), ("GET", "/v1/batches")}


@contextmanager
def application(state: Path) -> Iterator[TestClient]:
    """The routes of batches without a runner."""
    service = BatchService(FakeChat(), IDENTITY, service_settings(state, batch_rows=0), serving=lambda: True)
    with TestClient(Application(service.routes, IDENTITY, service.lifespan)) as client:
        yield client


def call(client: TestClient, key: str | None, method: str, path: str, resource: str = "") -> httpx.Response:
    """Call a route with the id of a file or batch, in the path or in the body."""
    headers = {"x-request-id": "same"} | ({} if key is None else {"authorization": key})
    body = {"input_file_id": resource, "endpoint": ENDPOINT, "completion_window": "24h"}
    answer: httpx.Response = client.request(
        method, path.format(id=resource), headers=headers, json=body if path == "/v1/batches" else None
    )  # type: ignore[assignment]
    return answer


def upload(client: TestClient, key: str | None) -> str:
    answer = client.post(
        "/v1/files",
        headers={} if key is None else {"authorization": key},
        files={"file": ("in.jsonl", request_lines(1))},
        data={"purpose": "batch"},
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_every_route_is_known_here(tmp_path: Path) -> None:
    """A new route of files or batches must be added to the property below."""
    routes = BatchService(FakeChat(), IDENTITY, service_settings(tmp_path), serving=lambda: True).routes
    found = {(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    known = WITH_FILE | WITH_BATCH | WITHOUT_ID
    assert found == {(method, path.partition("?")[0]) for method, path in known}


@settings(max_examples=8, deadline=None, derandomize=True)
@given(makers=st.lists(st.tuples(st.sampled_from(KEYS), st.booleans()), min_size=1, max_size=6), data=st.data())
def test_what_another_key_made_does_not_exist(makers: list[tuple[str | None, bool]], data: st.DataObject) -> None:
    """To another key every route answers as for an id that does not exist, and nothing is changed; lists hold the own
    files and batches alone.
    """  # fmt: skip
    with TemporaryDirectory() as state, application(Path(state)) as client:
        files: dict[str, str | None] = {}
        batches: dict[str, str | None] = {}
        for key, with_batch in makers:
            files[file := upload(client, key)] = key
            if with_batch:
                batches[call(client, key, "POST", "/v1/batches", file).json()["id"]] = key
        for key in KEYS:
            for path, owners in (("/v1/files", files), ("/v1/batches", batches)):
                listed = [entry["id"] for entry in call(client, key, "GET", path).json()["data"]]
                assert listed == [one for one, owner in owners.items() if owner == key][::-1]
        for routes, owners in ((WITH_FILE, files), (WITH_BATCH, batches)):
            for method, path in sorted(routes):
                for resource, owner in owners.items():
                    key = data.draw(st.sampled_from([key for key in KEYS if key != owner]))
                    unknown = resource[:-32] + uuid.uuid4().hex
                    seen, expected = (call(client, key, method, path, one) for one in (resource, unknown))
                    assert expected.status_code in (400, 404)
                    assert seen.status_code == expected.status_code, (method, path)
                    assert seen.text == expected.text.replace(unknown, resource)
                    assert seen.headers.items() == expected.headers.items()
        for batch, owner in batches.items():
            assert call(client, owner, "GET", "/v1/batches/{id}", batch).json()["status"] == "validating"
            assert call(client, owner, "POST", "/v1/batches/{id}/cancel", batch).json()["status"] == "cancelling"
        for file, owner in files.items():
            assert call(client, owner, "GET", "/v1/files/{id}/content", file).content == request_lines(1)


@pytest.mark.parametrize("spelling", SAME_AS_A)
def test_the_scheme_is_written_in_any_case(tmp_path: Path, spelling: str) -> None:
    """The same key in another spelling of its header is the same owner."""
    with application(tmp_path) as client:
        file = upload(client, "Bearer a")
        assert call(client, spelling, "GET", "/v1/files/{id}", file).status_code == 200


def test_results_belong_to_the_key_of_their_batch(tmp_path: Path) -> None:
    """The output file, which the runner writes, belongs to the key that made the batch."""
    with served(tmp_path, key="secret-key-a") as client:
        batch = wait_for_end(client, create_batch(client, request_lines(2)).id)
        assert batch.output_file_id
        assert len(client.files.content(batch.output_file_id).content.splitlines()) == 2
        listed = {file.id for file in client.files.list()}
        assert listed == {batch.input_file_id, batch.output_file_id}
        other = client.with_options(api_key="secret-key-b")
        path = f"{client.base_url}files/{batch.output_file_id}/content"
        for headers in (other.auth_headers, {}):
            assert httpx.get(path, headers=headers, trust_env=False).status_code == 404
    for path_of_state in tmp_path.rglob("*"):
        assert path_of_state.is_dir() or b"secret-key" not in path_of_state.read_bytes()


def test_what_an_older_version_made(tmp_path: Path) -> None:
    """Without a recorded key, as an older version leaves it, a row is in no list; who knows its id can use it."""
    store = BatchStore(tmp_path)
    batch = store.create(request_lines(1))
    file = store.batches.get(batch)["input_file_id"]
    store.database.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "batches.db")) as database:  # back to schema 1
        for table in ("files", "batches"):
            database.execute(f"DROP INDEX {table}_key_hash")
            database.execute(f"ALTER TABLE {table} DROP COLUMN key_hash")
        database.execute("PRAGMA user_version=1")
        database.commit()
    with application(tmp_path) as client:
        for key in KEYS:
            assert call(client, key, "GET", "/v1/files").json()["data"] == []
            assert call(client, key, "GET", "/v1/batches").json()["data"] == []
            assert call(client, key, "GET", "/v1/files/{id}", file).status_code == 200
            assert call(client, key, "GET", "/v1/batches/{id}", batch).status_code == 200
        again = call(client, "Bearer a", "POST", "/v1/batches", file).json()["id"]
        assert call(client, "Bearer b", "GET", "/v1/batches/{id}", again).status_code == 404
