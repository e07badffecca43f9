"""Sentry: exceptions go there with the request that they belong to, and nothing that a client has sent."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.contract.worker_state import WorkerState
from service.identity import Identity
from service.settings import Settings
from service.telemetry import sentry
from service.telemetry.sentry import MAX_EVENTS, SentryHandler
from tests.test_app import CHAT, FakeEngine

sentry_sdk = pytest.importorskip("sentry_sdk")
from sentry_sdk.envelope import Envelope  # noqa: E402
from sentry_sdk.transport import Transport  # noqa: E402

DSN = "http://public@127.0.0.1:9/1"
SECRET = "the-secret-of-a-client"
QUESTION = {"messages": [{"role": "user", "content": SECRET}], "user": SECRET}


class Memory(Transport):
    """Keeps what would be sent."""

    events: list[dict[str, Any]]

    def capture_envelope(self, envelope: Envelope) -> None:
        self.events += [dict(event) for event in [envelope.get_event()] if event]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What was sent to Sentry of the loggers of this process."""
    monkeypatch.setattr(Memory, "events", [], raising=False)
    state = WorkerState.of_this_process(slot="green", generation=3, version="1.1.0")
    handler = SentryHandler(DSN, state, transport=Memory)
    logging.getLogger("service").addHandler(handler)
    yield Memory.events
    logging.getLogger("service").removeHandler(handler)
    handler.close()


@pytest.mark.parametrize("stream", [False, True])
def test_an_exception_has_its_request_and_nothing_of_a_client(events: list[dict[str, Any]], stream: bool) -> None:
    """Type, stack, request, version, slot, generation; no body, prompt, header, query, local variable or text."""
    engine = FakeEngine(fail_at=1 if stream else 0, error=RuntimeError(f"cannot answer {SECRET}"))
    app = create_app(engine, Identity("1.1.0", "green", 3), Settings(slot="green"), serving=lambda: True)
    headers = {"authorization": f"Bearer {SECRET}", "x-request-id": "req-1", "cookie": SECRET}
    TestClient(app).post(f"{CHAT}?api_key={SECRET}", json={**QUESTION, "stream": stream}, headers=headers)
    [event] = events
    [exception] = event["exception"]["values"]
    assert exception["type"] == "RuntimeError"
    assert exception["stacktrace"]["frames"][-1]["function"] == "stream"
    assert not any("vars" in frame for frame in exception["stacktrace"]["frames"])
    tags = {name: event["tags"][name] for name in ("request_id", "version", "slot", "generation")}
    assert tags == {"request_id": "req-1", "version": "1.1.0", "slot": "green", "generation": "3"}
    assert event["release"] == "1.1.0"
    assert SECRET not in json.dumps(event, default=str)
    assert not {"request", "user", "breadcrumbs", "extra", "contexts", "modules", "logentry"} & set(event)


def test_what_clients_do_wrong_is_no_exception(events: list[dict[str, Any]]) -> None:
    """Refusals, and lines without an exception, stay in the log."""
    app = create_app(FakeEngine(), Identity("1.1.0", "green", 3), Settings(slot="green"), serving=lambda: True)
    TestClient(app).post(CHAT, json={})
    logging.getLogger("service").error("the disk is full")
    assert events == []


def test_a_chain_of_exceptions_has_no_text(events: list[dict[str, Any]]) -> None:
    """Neither those that an exception was raised from, nor notes that were added to it."""

    def find() -> None:
        raise KeyError(SECRET)

    def read() -> None:
        try:
            find()
        except KeyError as cause:
            cause.add_note(SECRET)
            raise ValueError(SECRET) from cause

    try:
        read()
    except ValueError:
        logging.getLogger("service").exception("cannot read %s", SECRET)
    assert [exception["type"] for exception in events[0]["exception"]["values"]] == ["KeyError", "ValueError"]
    assert SECRET not in json.dumps(events, default=str)


def test_the_rate_is_bounded(events: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that a client can reach again and again describes few stacks a second."""
    log = logging.getLogger("service")
    monkeypatch.setattr("service.telemetry.sentry.time.monotonic", lambda: 100.0)
    for _ in range(5 * MAX_EVENTS):
        log.error("failed", exc_info=RuntimeError())
    assert len(events) == MAX_EVENTS
    monkeypatch.setattr("service.telemetry.sentry.time.monotonic", lambda: 101.0)
    log.error("failed", exc_info=RuntimeError())
    assert len(events) == MAX_EVENTS + 1


@pytest.mark.parametrize(("dsn", "reason"), [("", None), ("nonsense", "no DSN"), (None, None)])
def test_without_a_dsn_nothing_is_sent(dsn: str | None, reason: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """One that is none is named, and the worker serves."""
    settings = Settings(slot="blue", sentry_dsn=None if dsn is None else SecretStr(dsn))
    assert sentry.start(settings, WorkerState.of_this_process(slot="blue", generation=1, version="1")) is None
    assert [reason is not None and reason in record.getMessage() for record in caplog.records] == [True] * bool(reason)


def test_the_dsn_is_not_shown() -> None:
    """Where settings are printed."""
    assert "public@" not in repr(Settings(slot="blue", sentry_dsn=SecretStr(DSN)))


WORKER = """
import logging, sys
from pydantic import SecretStr
from service.contract.worker_state import WorkerState
from service.settings import Settings
from service.telemetry import sentry
state = WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0")
assert sentry.start(Settings(slot="blue"), state) is None and "sentry_sdk" not in sys.modules
handler = sentry.start(Settings(slot="blue", sentry_dsn=SecretStr(sys.argv[1])), state)
logging.getLogger("gunicorn.error").error("failed", exc_info=ZeroDivisionError("secret"))
handler.close()
"""


def test_a_worker_sends_with_its_last_breath() -> None:
    """To a server on loopback, in a process that ends at once; without a DSN the package is not even imported."""
    received: list[bytes] = []

    async def receive() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            received.append(head + await reader.readexactly(length))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, f"http://public@127.0.0.1:{port}/1", stderr=asyncio.subprocess.DEVNULL
        )
        assert await worker.wait() == 0
        server.close()

    asyncio.run(receive())
    [request] = received
    assert request.startswith(b"POST /api/1/envelope/ ")
