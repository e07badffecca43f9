"""The longest wait that the probe reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deploy.rollout import probe as probe_module
from deploy.rollout.probe import Probe


class Server(ThreadingHTTPServer):
    """Answers at once, but for the clients that are held."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0) -> None:
        self.free = {"close": threading.Event(), "keep-alive": threading.Event()}
        self.hold()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def hold(self, *clients: str) -> None:
        """Hold the requests of these clients, and answer those of the others."""
        for name, free in self.free.items():
            free.clear() if name in clients else free.set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers when its client is not held."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.free[self.headers["connection"]].wait(20)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe waits for its first responses, and for its threads, for a tenth of a second."""
    monkeypatch.setattr(probe_module, "_FIRST", 0.1)
    monkeypatch.setattr(probe_module, "_JOIN", 0.1)


@contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    with Server(port) as server:
        yield server
        server.hold()
        server.shutdown()


HOLDS = [(), ("close",), ("keep-alive",), ("close", "keep-alive")]


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.sampled_from(HOLDS), holds=st.lists(st.sampled_from(HOLDS), max_size=4))
@example(before=("keep-alive",), holds=[("close", "keep-alive"), ("keep-alive",), ()])
@example(before=("close", "keep-alive"), holds=[("close", "keep-alive"), ("close",), ()])
@example(before=("close", "keep-alive"), holds=[("close", "keep-alive")])
def test_longest_wait(before: tuple[str, ...], holds: list[tuple[str, ...]]) -> None:
    """It counts from the end of `begin` to that of `end`, whatever the first responses and the other client do."""
    seconds = 0.2  # for each hold
    with serving() as server:
        probe = Probe(lambda: server.address)
        server.hold(*before)
        probe.begin()
        began = time.monotonic()
        expected, waits = 0.0, dict.fromkeys(server.free, 0.0)
        for held in holds:
            server.hold(*held)
            time.sleep(seconds)
            waits = {name: waits[name] + seconds if name in held else 0.0 for name in waits}
            expected = max(expected, *waits.values())
        probe.end()
        assert expected - 0.02 <= (probe.longest_ms or 0.0) / 1000 <= time.monotonic() - began + 0.001


def test_refused_connections_are_a_wait() -> None:
    """While the address refuses connections, a client waits, although each of its attempts ends at once."""
    with serving() as server:
        probe = Probe(lambda: server.address)
        probe.begin()
    time.sleep(0.3)
    with serving(server.server_address[1]):
        answered = probe.answered
        while probe.answered < answered + 4:
            time.sleep(0.01)
        probe.end()
    assert probe.longest_ms is not None
    assert probe.longest_ms >= 280


def test_a_probe_without_an_address_reports_nothing() -> None:
    """Without a public socket there is no client, and no wait."""
    probe = Probe(lambda: None)
    probe.begin()
    probe.end()
    assert probe.longest_ms is None
    assert probe.answered == 0
