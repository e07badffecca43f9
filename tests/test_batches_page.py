"""The batches page in front of a fake service, and its check of files beside that of the service."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from service.batches.lines import ENDPOINT as SERVICE_ENDPOINT
from service.batches.lines import parse_input
from service.settings import Settings
from tests.page_fixtures import PAGE, open_page
from ui.batches import client as batches_client
from ui.batches.client import BatchClient, owner_tag
from ui.batches.jsonl import ENDPOINT, MAX_PROBLEMS, BatchLimits, Reason, check
from ui.batches.texts import BATCH_TEXTS
from ui.client import Fault, ServiceClient, ServiceError
from ui.picture import MAX_FILE

WORDS = BATCH_TEXTS["en"]


def line(custom_id: object = "1", **changes: object) -> bytes:
    document = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"messages": []}, **changes}
    return json.dumps(document).encode() + b"\n"


class FakeBatches:
    """The routes of files and batches on a real socket, which fail as the attributes request."""

    def __init__(self) -> None:
        self.key: str | None = None  # that is accepted; None: no key is needed
        self.lose_upload = False  # the connection ends in the middle of it
        self.cut_upload = False  # the answer tells fewer bytes than were sent
        self.refuse_batch: dict[str, Any] | None = None
        self.files: dict[str, bytes] = {}
        self.batches: list[dict[str, Any]] = []  # the newest first
        self.calls: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, status: str = "in_progress", **changes: Any) -> dict[str, Any]:
        counts = {"total": 0, "completed": 0, "failed": 0}
        batch = {"id": f"batch_{len(self.batches)}", "status": status, "created_at": 0, "errors": None}
        batch |= {"output_file_id": None, "error_file_id": None, "request_counts": counts, "metadata": None, **changes}
        self.batches.insert(0, batch)
        return batch

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

            def do_GET(self) -> None:
                self._answer(b"")

            def do_DELETE(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                if self.path == "/v1/files" and fake.lose_upload:
                    fake.calls.append("POST /v1/files")
                    self.connection.close()
                    self.close_connection = True
                    return
                self._answer(self._body())

            def _body(self) -> bytes:
                if self.headers["transfer-encoding"] != "chunked":
                    return self.rfile.read(int(self.headers["content-length"] or 0))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _answer(self, body: bytes) -> None:
                path = self.path.partition("?")[0]
                fake.calls.append(f"{self.command} {path}")
                if fake.key and self.headers["authorization"] != f"Bearer {fake.key}":
                    self._send(401, {"error": {"message": "a key is needed", "code": "invalid_api_key"}})
                elif self.command == "POST" and path == "/v1/files":
                    data = body.split(b"filename=")[1].partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
                    fake.files[f"file_{len(fake.files)}"] = data
                    size = len(data) - fake.cut_upload
                    self._send(200, {"id": f"file_{len(fake.files) - 1}", "bytes": size})
                elif self.command == "POST" and path == "/v1/batches":
                    asked = json.loads(body)
                    if fake.refuse_batch:
                        self._send(400, fake.refuse_batch)
                    else:
                        self._send(200, fake.add("validating", metadata=asked["metadata"]))
                elif self.command == "POST":
                    self._batch(path.split("/")[-2])["status"] = "cancelling"
                    self._send(200, {})
                elif path == "/v1/batches":
                    self._send(200, {"object": "list", "data": fake.batches})
                elif self.command == "DELETE":
                    fake.files.pop(path.split("/")[-1])
                    self._send(200, {})
                elif path.endswith("/content"):
                    self._send_bytes(200, fake.files[path.split("/")[-2]])
                elif path.split("/")[-1] in fake.files:
                    self._send(200, {"bytes": len(fake.files[path.split("/")[-1]])})
                else:
                    self._send(404, {"error": {"message": "no such file", "code": "not_found"}})

            def _batch(self, identifier: str) -> dict[str, Any]:
                return next(one for one in fake.batches if one["id"] == identifier)

            def _send(self, status: int, document: dict[str, Any]) -> None:
                self._send_bytes(status, json.dumps(document).encode())

            def _send_bytes(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler


@pytest.fixture
def service() -> Iterator[FakeBatches]:
    service = FakeBatches()
    yield service
    service.close()


@pytest.fixture
def client(service: FakeBatches) -> Iterator[BatchClient]:
    connection = ServiceClient(service.address)
    yield BatchClient(connection)
    connection.close()


@pytest.fixture
def page(service: FakeBatches, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    monkeypatch.setattr("ui.batches.view.browser_id", lambda _: "one")
    monkeypatch.setattr("ui.batches.listing.SHARED", 0)
    with open_page(service, monkeypatch, PAGE.with_name("batches_page.py")) as page:
        yield page


def shown(page: AppTest) -> str:
    html = [element.proto.body for element in page.get("html")]
    progress = [element.proto.text for element in page.get("progress")]
    parts = (*page.markdown, *page.caption, *page.info, *page.warning, *page.success, *page.code)
    return "\n".join([*html, *progress, *(str(part.value) for part in parts)])


def choose(page: AppTest, data: bytes, name: str = "questions.jsonl") -> None:
    page.file_uploader[0].upload(name, data, "application/jsonl").run()
    assert not page.exception


def press(page: AppTest, label: str) -> None:
    next(button for button in page.button if button.label == label).click().run()
    assert not page.exception


def look_again(page: AppTest) -> str:
    from ui.batches.listing import forget_listing

    forget_listing()
    page.run()
    assert not page.exception
    return shown(page)


def test_a_batch_from_file_to_results(page: AppTest, service: FakeBatches) -> None:
    """It is checked, sent whole, listed with its progress, cancelled, and its results can be downloaded."""
    data = line("1") + line("2")
    choose(page, data)
    assert service.files == {}, "nothing is sent before the button is pressed"
    assert "2 requests" in shown(page)
    press(page, WORDS.start)
    assert service.files == {"file_0": data}
    [batch] = service.batches
    assert batch["metadata"] == {"glm_page": owner_tag("one"), "file": "questions.jsonl"}
    assert WORDS.started.format(name=r"questions.jsonl") in shown(page)
    assert not page.file_uploader[0].value
    assert WORDS.checking in shown(page)
    batch["status"], batch["request_counts"] = "in_progress", {"total": 4, "completed": 1, "failed": 1}
    assert "2 of 4 done · 1 failed" in look_again(page)
    press(page, WORDS.cancel)
    assert ":blue-badge[being cancelled]" in look_again(page)
    service.files["out"] = b"results"
    batch |= {"status": "cancelled", "output_file_id": "out", "error_file_id": "gone"}
    assert ":gray-badge[cancelled]" in look_again(page)
    assert [element.proto.label for element in page.get("download_button")] == [WORDS.output]
    assert WORDS.expired in shown(page)
    page.segmented_control[0].set_value("zh").run()
    assert ":gray-badge[已取消]" in shown(page)


def test_what_is_wrong_is_told_with_its_line(page: AppTest, service: FakeBatches) -> None:
    """Such a file is not sent: there is no button."""
    choose(page, line("1") + b"\n" + b"{broken\n" + line("1") + line("2", url="/v1/embeddings"))
    text = shown(page)
    assert "<td>3</td><td>No valid JSON" in text
    assert "<td>4</td><td>The custom_id “1” is that of line 1 too.</td>" in text
    assert f"<td>5</td><td>“url” is /v1/embeddings; it must be {ENDPOINT}.</td>" in text
    assert WORDS.start not in [button.label for button in page.button]
    assert service.files == {}


@pytest.mark.parametrize("failure", ["lose_upload", "cut_upload"])
def test_no_batch_without_its_file(page: AppTest, service: FakeBatches, failure: str) -> None:
    """An upload that breaks off, or of which not all bytes arrived, starts no batch; the next attempt does."""
    setattr(service, failure, True)
    choose(page, line())
    press(page, WORDS.start)
    assert "POST /v1/batches" not in service.calls
    assert "The batch was not started" in page.warning[0].value
    setattr(service, failure, False)
    press(page, WORDS.start)
    assert len(service.batches) == 1


def test_a_refused_batch_leaves_no_file(page: AppTest, service: FakeBatches) -> None:
    """The service's reason is shown."""
    service.refuse_batch = {"error": {"message": "no room for batches", "code": None}}
    choose(page, line())
    press(page, WORDS.start)
    assert "no room for batches" in page.warning[0].value
    assert service.files == {}


def test_a_file_that_did_not_arrive(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named; there is nothing to start."""
    monkeypatch.setattr("ui.batches.view.take_missing", lambda: ["lost.jsonl", ""])
    page.run()
    assert "lost.jsonl did not arrive" in page.warning[0].value
    assert page.warning[1].value.startswith(WORDS.a_file)
    assert WORDS.start not in [button.label for button in page.button]


def test_a_browser_sees_its_batches(page: AppTest, service: FakeBatches) -> None:
    """Those of other browsers with the page's key are not listed."""
    service.add(metadata={"glm_page": owner_tag("one"), "file": "mine.jsonl"})
    service.add(metadata={"glm_page": owner_tag("two"), "file": "theirs.jsonl"})
    service.add()
    text = look_again(page)
    assert "mine.jsonl" in text
    assert "theirs.jsonl" not in text
    assert "batch_2" not in text


def test_a_key_of_one_s_own(page: AppTest, service: FakeBatches) -> None:
    """Where the service asks for a key, the page asks for it; then all batches of that key are there."""
    service.key = "my-key"
    service.add("failed", errors={"data": [{"line": 7, "message": "this line is not valid JSON"}]})
    assert WORDS.key_needed in look_again(page)
    page.text_input[0].set_value("schlüssel")
    press(page, WORDS.use_key)
    assert WORDS.bad_key in shown(page)
    page.text_input[0].set_value(" my-key ")
    press(page, WORDS.use_key)
    text = look_again(page)
    assert "batch_0" in text
    assert "<td>7</td><td>this line is not valid JSON</td>" in text
    assert "my-key" not in text
    choose(page, line())
    press(page, WORDS.start)
    assert len(service.batches) == 2
    press(page, WORDS.forget_key)
    assert WORDS.key_needed in look_again(page)


def test_an_unreachable_service(page: AppTest, service: FakeBatches) -> None:
    """The page says so."""
    service.batches = [{"id": 1}]
    assert WORDS.faults[Fault.INVALID_RESPONSE] in look_again(page)


def test_large_results_do_not_go_through_the_page(
    client: BatchClient, page: AppTest, service: FakeBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead the page tells how to get them; also what grows meanwhile is bounded."""
    monkeypatch.setattr(batches_client, "MAX_DOWNLOAD", 4)
    monkeypatch.setattr("ui.batches.listing.MAX_DOWNLOAD", 4)
    service.files |= {"large": b"large", "fits": b"fits"}
    assert client.download("fits") == b"fits"
    with pytest.raises(ServiceError) as caught:
        client.download("large")
    assert caught.value.fault is Fault.TOO_LARGE
    service.add("completed", output_file_id="large", metadata={"glm_page": owner_tag("one"), "file": "x"})
    assert f"http://{service.address}/v1/files/large/content" in look_again(page)


PARTS = st.sampled_from(
    [
        line("1"),
        line("2"),
        line("é"),
        b"\n",
        b" \t\r\n",
        b"{",
        b"[]\n",
        b"null\n",
        b"\xff\n",
        b"[" * 300 + b"\n",
        b"\xef\xbb\xbf" + line("3"),
        b'{"custom_id": NaN}\n',
        line(""),
        line("x" * 513),
        line(5),
        line("4", method="GET"),
        line("4", url="/v1/embeddings"),
        line("4", url=None),
        line("4", body=[]),
        line("5", body={"x": "y" * 200}),
        line("6", body={"x": [1] * 90}),
        line("7").rstrip(),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PARTS, max_size=8), st.integers(1, 4))
def test_the_check_is_that_of_the_service(parts: list[bytes], lines: int) -> None:
    """What the page sends has no error for the service, and both name the same lines."""
    data = b"".join(parts)
    parsed = parse_input(io.BytesIO(data), max_lines=lines, max_length=250, max_structure=80)
    assert parsed is not None
    checked = check(io.BytesIO(data), BatchLimits(lines=lines, body=250, structure=80))
    counted = [error["line"] for error in parsed.errors if error["code"] != "too_many_tasks"]
    assert [one.line for one in checked.problems if one.reason is not Reason.TOO_MANY][: len(counted)] == counted
    assert bool(checked.problems) == bool(parsed.errors)
    assert parsed.errors or checked.requests == len(parsed.tasks)
    for texts in BATCH_TEXTS.values():
        for one in checked.problems:
            assert texts.problems[one.reason].format(found=one.found, limit=one.limit)


def test_the_limits_are_the_service_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings that the service reads bound the page too, which holds a file in memory and takes less."""
    service = Settings(slot="blue")
    limits = (service.max_file, service.max_batch_lines, service.max_body, service.max_structure)
    assert BatchLimits() == BatchLimits(*limits)
    assert BatchLimits.from_environment().file == MAX_FILE < service.max_file
    assert ENDPOINT == SERVICE_ENDPOINT
    monkeypatch.setenv("GLM_MAX_FILE", "10")
    [problem] = check(io.BytesIO(line()), BatchLimits.from_environment()).problems
    assert problem.reason is Reason.FILE_SIZE


def test_problems_are_bounded() -> None:
    """A file of nothing but errors is not read to its end."""
    file = io.BytesIO(b"{\n" * 10_000)
    assert len(check(file, BatchLimits()).problems) == MAX_PROBLEMS
    assert file.tell() < 100


def test_texts_are_complete() -> None:
    """No sentence is missing in either language."""
    english, chinese = BATCH_TEXTS.values()
    for texts in (english, chinese):
        assert all(vars(texts).values())
        assert set(texts.problems) == set(Reason)
    assert english.statuses.keys() == chinese.statuses.keys()
    assert english.faults.keys() == chinese.faults.keys()
