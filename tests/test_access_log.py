"""The access log and the journal: a line for each request, at a bounded rate, whatever clients and readers do."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from service import metrics
from service.contract.journald import encode
from service.contract.samples import BROKEN_OFF, CLIENT_GONE
from service.logs import access
from service.logs.access import AccessLog, Entry
from service.logs.handler import Line, new_handler, new_writer
from service.logs.journal import JournalHandler, is_journal, priority_of
from tests.server_fixtures import Host, running_host, until
from tests.test_app import CHAT, HELLO
from tests.test_refusals import hostile
from tests.test_request_metrics import ServiceApp, get, post

many = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
OK = Entry("GET", "/v1/models", 200, 0.0123, "10.0.0.1", "1.0.0", "req-1")
LEFT_OUT = re.compile(r"left out the lines of (\d+) more requests")


Written = list[Line]


def written(entries: list[Entry], share: float = 1, rate: int = 1000) -> Written:
    """Return the lines of a log to which these were added, as far as it wants them."""
    lines: Written = []
    log = AccessLog(share, rate, lambda: lines.extend)
    for entry in entries:
        if log.wants(entry.path, entry.status, entry.client):
            log.add(entry)
    log.close()
    return lines


@many
@given(texts=st.tuples(*[hostile] * 6), status=st.sampled_from([200, 404, 500]))
def test_a_client_cannot_write_the_log(texts: tuple[str, ...], status: int) -> None:
    """Whatever a client sends: one line of bounded length, printable ASCII alone, in the text and in the fields."""
    method, path, client, version, request_id, reason = texts
    (line,) = written([Entry(method, path, status, 0.1, client, version, request_id, reason=reason)])
    for text in (line.text, *map(str, line.fields().values())):
        assert len(text) < 2000
        assert text.isascii()
        assert text.isprintable()
    assert ("REASON" in line.fields()) == (status >= 400 and bool(reason))


def test_a_line_has_what_is_known_of_the_request() -> None:
    """As text and as fields; the level says whose fault it was: the journal's errors are the server's alone."""
    answered = OK._replace(method="POST", path=CHAT, first=0.25, tokens=(7, 3))
    refused = OK._replace(status=429, reason="the queue is full")
    failed = OK._replace(status=BROKEN_OFF, path="/healthz")
    gone = OK._replace(status=CLIENT_GONE)
    lines = written([answered, refused, failed, gone, OK._replace(path="/healthz")])
    assert [(logging.getLevelName(line.level), line.text) for line in lines] == [
        ("INFO", f"POST {CHAT} 200 12 ms, first token 250 ms, tokens 7+3, version 1.0.0, client 10.0.0.1, id req-1"),
        ("WARNING", "GET /v1/models 429 12 ms, version 1.0.0, client 10.0.0.1, id req-1: the queue is full"),
        ("ERROR", "GET /healthz 599 12 ms, version 1.0.0, client 10.0.0.1, id req-1: the answer was broken off"),
        ("INFO", "GET /v1/models 499 12 ms, version 1.0.0, client 10.0.0.1, id req-1: the client has disconnected"),
    ]
    assert lines[0].fields() == {
        "REQUEST_ID": "req-1",
        "MODEL_VERSION": "1.0.0",
        "HTTP_METHOD": "POST",
        "HTTP_PATH": CHAT,
        "HTTP_STATUS": 200,
        "DURATION_MS": 12,
        "TTFT_MS": 250,
        "PROMPT_TOKENS": 7,
        "COMPLETION_TOKENS": 3,
        "CLIENT": "10.0.0.1",
    }


@many
@given(st.lists(st.sampled_from(["10.0.0.1"] * 5 + ["10.0.0.2", ""]), max_size=60), st.integers(2, 20))
def test_the_rate_is_bounded_and_everything_is_counted(flood: list[str], rate: int) -> None:
    """At most `rate` lines, half of them of one address; the others are in the count."""
    texts = [line.text for line in written([OK._replace(client=client) for client in flood], rate=rate)]
    left_out = [int(match[1]) for text in texts if (match := LEFT_OUT.fullmatch(text))]
    clients = [match[1] for text in texts if (match := re.search("client (\\S+),", text))]
    assert len(clients) + sum(left_out) == len(flood)
    assert len(clients) <= rate
    assert all(clients.count(client) <= rate // 2 for client in clients)
    assert len(left_out) <= 1


@pytest.mark.parametrize(("share", "expected"), [(1.0, [200, 200, 404, 503]), (0.5, [200, 404, 503]), (0.0, [])])
def test_a_share_of_the_requests_is_logged(monkeypatch: pytest.MonkeyPatch, share: float, expected: list[int]) -> None:
    """Those that fail always are, unless the log is off."""
    drawn = iter([0.49, 0.5])
    monkeypatch.setattr(random, "random", lambda: next(drawn))
    lines = written([OK._replace(status=status) for status in (200, 200, 404, 503)], share)
    assert [line.fields()["HTTP_STATUS"] for line in lines] == expected


def test_a_reader_that_has_stopped_stops_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is bounded; the rest is counted, and the count is written once that is possible again."""
    goes_on = threading.Event()
    lines: Written = []

    def write(batch: Sequence[Line]) -> None:
        goes_on.wait()
        lines.extend(batch)

    monkeypatch.setattr(access, "WINDOW", 0.0)
    log = AccessLog(1, 4, lambda: write)
    for _ in range(100):
        if log.wants(OK.path, OK.status, OK.client):
            log.add(OK)
    assert len(log._pending) == 4
    goes_on.set()
    log.close()
    left_out = sum(int(match[1]) for line in lines if (match := LEFT_OUT.fullmatch(line.text)))
    assert len([line for line in lines if "id req-1" in line.text]) + left_out == 100


# the journal


def decode(data: bytes) -> dict[str, str]:
    """Parse a datagram as journald does."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            [length] = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found[name.decode()] = value.decode()
        data = rest
    return found


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    """What a process finds in place of journald's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "socket"))
        receiver.setblocking(False)
        yield receiver


def record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("service", level, "file", 1, message, None, None)


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,20}", fullmatch=True), st.text(st.characters(codec="utf-8"))))
def test_an_entry_is_read_as_it_was_written(fields: dict[str, str]) -> None:
    """Values with line breaks too, such as tracebacks: none can add a field."""
    assert decode(encode(fields)) == fields


def test_the_journal_has_priorities_and_fields(journald: socket.socket, tmp_path: Path) -> None:
    """`journalctl -p err` shows errors and only errors; an entry has no time of its own beside journald's."""
    handler = JournalHandler({"SLOT": "blue", "GENERATION": 3}, tmp_path / "socket")
    assert journald.recv(1 << 16) == b""
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
    assert [priority_of(level) for level in levels] == [7, 6, 4, 3, 2]
    for level in levels:
        handler.handle(record(level, "hello\nworld"))
        assert decode(journald.recv(1 << 16)) == {
            "MESSAGE": "hello\nworld",
            "PRIORITY": str(priority_of(level)),
            "SYSLOG_IDENTIFIER": "glm",
            "LOGGER": "service",
            "SLOT": "blue",
            "GENERATION": "3",
        }
    handler.send(logging.INFO, OK.text, OK.fields())
    entry = decode(journald.recv(1 << 16))
    assert (entry["MESSAGE"], entry["REQUEST_ID"], entry["GENERATION"]) == (OK.text, "req-1", "3")
    handler.close()


@pytest.mark.usefixtures("journald")
def test_a_full_journal_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it does not take is lost, but for warnings and errors, which go to stderr with their priority."""
    handler = JournalHandler({}, tmp_path / "socket")
    for number in range(2000):
        handler.handle(record(logging.INFO, f"{number}" * 1000))
    assert handler.lost
    assert capsys.readouterr().err == ""
    handler.handle(record(logging.ERROR, "on purpose"))
    assert capsys.readouterr().err == "<3>on purpose\n"
    handler.close()


def test_the_journal_is_used_where_stderr_is_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$JOURNAL_STREAM names the stream by device and inode: a process with another stderr may have inherited it."""
    with (tmp_path / "stderr").open("w") as stream, (tmp_path / "other").open("w") as other:
        status = os.fstat(stream.fileno())
        assert not is_journal(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert is_journal(stream.fileno())
        assert not is_journal(other.fileno())
        monkeypatch.setattr(sys, "stderr", other)
        handler = new_handler()
        handler.handle(record(logging.INFO, "hello"))
        new_writer()([Line(logging.INFO, "hello"), Line(logging.INFO, "hello")])
        line = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[\d+\] \[INFO\] hello\n"
        assert re.fullmatch(f"({line}){{3}}", (tmp_path / "other").read_text())


GUNICORN = """
import logging
from gunicorn.config import Config
from service.logs.gunicorn_logger import GunicornLogger
config = Config(); config.set("logger_class", GunicornLogger)
for _ in range(2):
    logger = GunicornLogger(config)
logger.info("Handling signal: usr2")
logger.warning("USR2 signal ignored. Child exists.")
logger.warning("a warning of Gunicorn")
logging.getLogger("gunicorn.error").info("the gate opened")
logging.getLogger("service").info("of the service")
logging.getLogger("httpx").info("of a library")
logging.getLogger("httpx").warning("a warning of a library")
"""


def test_all_of_a_process_is_logged_once_and_in_one_format() -> None:
    """Also what libraries warn of; not what Gunicorn does when all goes well."""
    done = subprocess.run([sys.executable, "-c", GUNICORN], capture_output=True, text=True, check=True)
    lines = [line.rpartition("] ")[2] for line in done.stderr.splitlines()]
    assert lines == ["a warning of Gunicorn", "the gate opened", "of the service", "a warning of a library"]


# through the server


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Written:
    """The lines of the access logs of both slots, once the host has ended."""
    found: Written = []
    monkeypatch.setattr(AccessLog.__init__, "__defaults__", (lambda: found.extend,))
    return found


def moved() -> list[float]:
    """Connections that blue has passed on, and that green has received, by the metrics."""
    names = (("glm_connections_handed_over_total", "blue"), ("glm_connections_adopted_total", "green"))
    return [REGISTRY.get_sample_value(name, {"version": "1.0.0", "slot": slot}) or 0 for name, slot in names]


def with_id(request: bytes, request_id: str) -> bytes:
    return request.replace(b"\r\n", f"\r\nX-Request-Id: {request_id}\r\n".encode(), 1)


@pytest.mark.anyio
async def test_a_request_is_followed_by_its_id_through_a_handover(
    monkeypatch: pytest.MonkeyPatch, lines: Written, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each request has one line, of the slot that answered it, with the id that its response has."""
    monkeypatch.setattr(metrics, "_counted", {})
    before_it = moved()
    async with running_host(tmp_path, tmp_path_factory.mktemp("run"), app=ServiceApp) as host:
        client = await host.client()
        await client.ask(with_id(post(HELLO), "before"))
        host.cut_over()
        reply = await client.ask(with_id(post({**HELLO, "stream": True}), "after"))
        assert (reply.slot, reply.headers["x-request-id"]) == ("green", "after")
        await client.ask(get("/v1/models?api_key=secret"))
        await client.ask(with_id(post({"messages": "secret"}), "bad"))
    assert moved() == [before_it[0] + 1, before_it[1] + 1]
    by_id = {line.fields()["REQUEST_ID"]: line.fields() for line in lines}
    assert len(lines) == len(by_id) == 4
    before, after, bad = (by_id.pop(name) for name in ("before", "after", "bad"))
    [models] = by_id.values()
    versions = {slot.state.slot: slot.app.identity.version for slot in host.slots}  # type: ignore[attr-defined]
    assert (before["REQUEST_ID"], before["MODEL_VERSION"]) == ("before", versions["blue"])
    assert (after["REQUEST_ID"], after["MODEL_VERSION"]) == ("after", versions["green"])
    assert (after["PROMPT_TOKENS"], after["COMPLETION_TOKENS"], after["CLIENT"]) == (7, 3, "127.0.0.1")
    came = {"ACCEPTED_BY": f"blue/1/{os.getpid()}", "HANDED_OVER_BY": f"blue/1/{os.getpid()}", "HANDOVERS": 1}
    assert {name: after.get(name) for name in came} == came
    assert not came.keys() & before.keys()
    assert {"QUEUE_MS", "PREFILL_MS", "DECODE_MS"} <= after.keys() & before.keys()
    assert "TTFT_MS" in after
    assert "TTFT_MS" not in before
    assert models["HTTP_PATH"] == "/v1/models"
    assert (bad["HTTP_STATUS"], str(bad["REASON"])[:8]) == (400, "messages")
    assert "secret" not in json.dumps([before, after, models])


@pytest.mark.anyio
async def test_failures_have_their_reason_and_their_kind(
    lines: Written, caplog: pytest.LogCaptureFixture, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the access log and in the metrics alike; no refusal is logged a second time."""
    async with running_host(tmp_path, tmp_path_factory.mktemp("run"), app=ServiceApp) as host:
        app, version = host.blue.app, host.blue.state.version
        client = await host.client()
        await client.ask(get("/nothing"))
        await client.ask(post({}))
        await client.ask(get("/raise"))
        gone = await host.client()
        gone.send(get("/slow"))
        await until(lambda: app.running == 1, "the request")
        gone.abort()
        await until(lambda: host.blue.ledger.client_aborted == 1, "the abort")
        app.proceed.set()
        await until(lambda: app.running == 0, "the end")
        text = await scrape_of(host)
    found = {(line.fields()["HTTP_STATUS"], str(line.fields().get("REASON"))[:11]) for line in lines}
    assert not [record for record in caplog.records if "refused" in record.getMessage()]
    assert (404, "Not Found") in found
    assert {status for status, _ in found} >= {404, 400, 499}
    kinds = set(re.findall(rf'glm_errors_total{{kind="(.*)",slot="blue",version="{version}"}}', text))
    assert kinds >= {"unknown_url", "client_gone"}


async def scrape_of(host: Host) -> str:
    reader, writer = await asyncio.open_unix_connection(str(host.runtime / "blue/http.sock"))
    writer.write(get("/metrics").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    text = (await reader.read()).decode()
    writer.close()
    return text
