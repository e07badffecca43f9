"""Shared by the tests of the page: a fake service, and helpers for Streamlit's AppTest."""

from __future__ import annotations

import io
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any, Protocol

import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from ui.client import ServiceClient

TIMEOUT = 120.0
PAGE = Path(__file__).parent.parent / "ui/page.py"


class Service(Protocol):
    """What listens at an address."""

    address: str


class FakeService:
    """A service on a real socket: streams `reasoning` and then `answer`, or fails as the other attributes request.

    `path`: of a slot's internal socket, in place of an address.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.version = "1.0.0"
        self.slot = "blue"
        self.candidate: tuple[str, str] | None = (
            None  # version and slot that answer GET requests which are not pinned, and all that are pinned to it
        )
        self.candidate_answer: list[str] | None = None  # in place of `answer`
        self.reasoning: list[str] = []
        self.answer = ["Hel", "lo ", "世界\u2028\u0085."]
        self.error: tuple[int, dict[str, Any]] | None = None
        self.error_in_stream = ""
        self.break_after: int | None = None
        self.send_done = True
        self.tokens: int | None = None  # of the usage that the last event tells
        self.waits = False  # the head names no version, and a comment precedes the answer
        self._allowed = math.inf
        self._changed = threading.Condition()
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.models_error: tuple[int, dict[str, Any]] | None = None  # of /v1/models
        self._server: ThreadingHTTPServer | ThreadingUnixStreamServer
        if path is None:
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
            self.address = f"127.0.0.1:{self._server.server_port}"
        else:
            self._server = ThreadingUnixStreamServer(str(path), self._handler())
            self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def allow(self, deltas: float = math.inf) -> None:
        """Stream at most this many deltas of an answer until the next call."""
        with self._changed:
            self._allowed = deltas
            self._changed.notify_all()

    def wait_for(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: number < self._allowed, TIMEOUT)

    def close(self) -> None:
        self.allow()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                fake.connections += 1

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

            def do_GET(self) -> None:
                if self.path == "/v1/models" and fake.models_error:
                    self._send(*fake.models_error)
                    return
                version, slot = self._origin(default=fake.candidate)
                self._send(200, {"version": version, "slot": slot, "generation": 1})

            def _origin(self, default: tuple[str, str] | None = None) -> tuple[str, str]:
                """Version and slot that answer; `default`: those of a request that is not pinned."""
                pinned = {"candidate": fake.candidate, "live": None}.get(self.headers["x-glm-slot"], default)
                return pinned or (fake.version, fake.slot)

            def do_POST(self) -> None:
                fake.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                if fake.error:
                    self._send(*fake.error)
                else:
                    self._stream()

            def _send(self, status: int, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode()
                self._head(status, "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _head(self, status: int, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                if not (fake.waits and kind == "text/event-stream"):
                    self.send_header("X-Model-Version", self._origin()[0])
                self.send_header("X-Slot", self._origin()[1])

            def _stream(self) -> None:
                self._head(200, "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if fake.waits:
                    self._chunk(b": keep-alive\n\n")
                deltas = [("reasoning_content", text) for text in fake.reasoning]
                is_candidate = self._origin() == fake.candidate and fake.candidate_answer is not None
                deltas += [("content", text) for text in (fake.candidate_answer if is_candidate else fake.answer) or ()]
                for number, (kind, text) in enumerate(deltas):
                    if number == fake.break_after:
                        self.close_connection = True
                        return
                    fake.wait_for(number)
                    self._event({"choices": [{"index": 0, "delta": {kind: text}, "finish_reason": None}]})
                if fake.error_in_stream:
                    self._event({"error": {"message": fake.error_in_stream, "type": "server_error"}})
                elif fake.send_done:
                    self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                    if fake.tokens is not None:
                        self._event({"choices": [], "usage": {"completion_tokens": fake.tokens}})
                    self._chunk(b"data: [DONE]\n\n")
                self._chunk(b"")

            def _event(self, document: dict[str, Any]) -> None:
                document = {**document, "system_fingerprint": self._origin()[0]}
                self._chunk(b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n")

            def _chunk(self, data: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

        return Handler


@contextmanager
def open_page(service: Service, monkeypatch: pytest.MonkeyPatch, path: Path = PAGE) -> Iterator[AppTest]:
    """The page in front of `service`; its clients and caches end with it."""
    monkeypatch.setenv("GLM_LISTEN", service.address)
    monkeypatch.syspath_prepend(str(PAGE.parent.parent))
    clients: list[ServiceClient] = []
    init = ServiceClient.__init__

    def record(client: ServiceClient, address: str, key: str | None = None, socket: Path | None = None) -> None:
        init(client, address, key, socket)
        clients.append(client)

    monkeypatch.setattr(ServiceClient, "__init__", record)
    yield AppTest.from_file(path, default_timeout=TIMEOUT).run()
    for client in clients:
        client.close()
    st.cache_resource.clear()
    st.cache_data.clear()


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def picture(width: int = 8, height: int = 8, kind: str = "PNG", colour: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(data, kind)
    return data.getvalue()


def ask(page: AppTest, text: str, *pictures: bytes) -> None:
    """Send a question and rerun the page after its answer has ended."""
    for number, data in enumerate(pictures):
        page.chat_input[0].upload(f"{number}.png", data, "image/png")
    page.chat_input[0].set_value(text).run()
    settle(page)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def settle(page: AppTest) -> None:
    """Wait until the answer has ended, and rerun the page."""
    wait_until(lambda: not page.session_state["conversation"].running)
    page.run()
    assert not page.exception


def texts(page: AppTest) -> str:
    """All texts of the chat."""
    return "\n".join(
        str(element.value)
        for message in page.chat_message
        for element in (*message.text, *message.markdown, *message.caption, *message.warning)
    )


def sidebar(page: AppTest) -> str:
    return "\n".join(str(element.value) for element in (*page.sidebar.markdown, *page.sidebar.caption))


def reasoning(page: AppTest) -> list[tuple[str, bool, str]]:
    """Label, expansion and text of each reasoning box."""
    return [
        (block.label, block.proto.expanded, "\n".join(str(element.value) for element in block.markdown))
        for message in page.chat_message
        for block in message.expander
    ]


def button_labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button]


def press(page: AppTest, label: str) -> None:
    next(button for button in page.button if button.label == label).click().run()
    settle(page)
