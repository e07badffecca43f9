"""Traces by OpenTelemetry: the spans of a request and of a rollout, with the real SDK."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.host import Host
from deploy.journal import spans
from deploy.journal.journal import Journal, begin
from deploy.journal.record import Record, Step
from service.contract.worker_state import WorkerState
from service.telemetry import traces
from service.telemetry.traces import QUEUE, Traces
from service.timing import AnswerTimes, ResponseTimer
from tests.server_fixtures import running_host, until
from tests.test_access_log import with_id
from tests.test_app import CHAT, HELLO
from tests.test_request_metrics import ServiceApp, get, post

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def new_traces(exporter: SpanExporter, share: float = 1) -> Traces:
    return Traces(exporter, share, WorkerState.of_this_process(slot="blue", generation=2, version="1.0.0"))


def timer(headers: dict[str, str] | None = None, path: str = CHAT, **state: Any) -> ResponseTimer:
    """A request that has ended."""
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"method": "POST", "path": path, "headers": pairs, "state": state}

    async def nothing(*_: object) -> Any: ...

    found = ResponseTimer(scope, nothing, nothing)
    found.complete = True
    found.end(client_gone=False)
    return found


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.anyio
async def test_the_spans_of_a_request_through_a_handover(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One span within the client's trace, with its phases in order within it, and the workers that had it."""
    exporters = {"blue": InMemorySpanExporter(), "green": InMemorySpanExporter()}
    monkeypatch.setattr(traces, "start", lambda _settings, state: Traces(exporters[state.slot], 1, state))
    async with running_host(tmp_path, tmp_path_factory.mktemp("run"), app=ServiceApp) as host:
        client = await host.client()
        await client.ask(post(HELLO))
        request = with_id(post({**HELLO, "stream": True}), "after")
        request = request.replace(b"\r\n", f"\r\ntraceparent: {PARENT}\r\n".encode(), 1)
        client.send(request[:40])
        await until(lambda: host.blue.ledger.accepted == 2, "the first bytes")
        host.cut_over()
        client.send(request[40:])
        assert (await client.reply()).slot == "green"
        await client.ask(get("/healthz"))
    found = [span for exporter in exporters.values() for span in exporter.get_finished_spans()]
    before, after = (span for span in found if span.name == f"POST {CHAT}")
    assert before.context.trace_id != after.context.trace_id == int(TRACE_ID, 16)
    assert after.parent
    assert after.parent.span_id == int(PARENT.split("-")[2], 16)
    phases = [span for span in found if span.parent and span.parent == after.context]
    assert [span.name for span in phases] == ["handoff", "queue", "prefill", "decode"]
    times = [at or 0 for span in (after, *phases) for at in (span.start_time, span.end_time)]
    (begin_of_all, end_of_all), times = times[:2], times[2:]
    assert times == sorted(times)
    assert begin_of_all <= times[0]
    assert times[-1] <= end_of_all
    blue = f"blue/1/{os.getpid()}"
    attributes = after.attributes or {}
    assert attributes["glm.accepted_by"] == attributes["glm.handed_over_by"] == blue
    assert {name: attributes[name] for name in ("glm.request_id", "glm.slot", "glm.generation", "glm.handovers")} == {
        "glm.request_id": "after", "glm.slot": "green", "glm.generation": 1, "glm.handovers": 1,
    }  # fmt: skip
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (7, 3)
    assert not any(span.name.startswith("GET") for span in found), "a probe"


@pytest.mark.parametrize(
    ("header", "share", "is_traced"),
    [(None, 0, False), (None, 1, True), (PARENT, 0, True), (PARENT[:-1] + "0", 1, False), ("nonsense", 1, True)],
)
def test_the_client_decides_whether_it_is_traced(header: str | None, share: float, is_traced: bool) -> None:
    """By the flag of its traceparent; without one, or with a damaged one, a share of the requests is."""
    exporter = InMemorySpanExporter()
    tracing = new_traces(exporter, share)
    tracing.add(timer({"traceparent": header} if header else {}), 200, "1.0.0")
    tracing.close()
    assert len(exporter.get_finished_spans()) == is_traced


def test_what_fails_is_an_error_and_what_a_client_chooses_is_no_name() -> None:
    """Names are those of routes: paths and methods of clients, and headers, are nowhere."""
    exporter = InMemorySpanExporter()
    tracing = new_traces(exporter)
    one = timer({"authorization": "secret", "tracestate": "secret"}, "/secret", request_id="req-1")
    one.scope["method"] = "SECRET"
    tracing.add(one, 500, "1.0.0", "internal_error")
    tracing.add(timer({}, "/readyz"), 503, "1.0.0")
    tracing.add(timer({}, "/readyz"), 200, "1.0.0")
    tracing.close()
    failed, probe = exporter.get_finished_spans()
    assert (failed.name, failed.status.status_code.name) == ("_OTHER", "ERROR")
    assert (failed.attributes or {})["error.type"] == "internal_error"
    assert (probe.attributes or {})["http.response.status_code"] == 503
    assert "secret" not in failed.to_json().lower()


class Stuck(SpanExporter):
    """A receiver that does not answer."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.batches: list[int] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.batches.append(len(spans))
        self.goes_on.wait()
        return SpanExportResult.SUCCESS


def test_a_receiver_that_hangs_stops_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is bounded, the rest is dropped, and neither a request nor the end of a worker waits."""
    monkeypatch.setattr(traces, "_CLOSE", 0.05)
    monkeypatch.setattr(traces, "QUEUE", 64)
    monkeypatch.setattr(traces, "_BATCH", 8)
    stuck = Stuck()
    tracing = new_traces(stuck)
    request = timer()
    for _ in range(500):
        tracing.add(request, 200, "1.0.0")
    tracing.close()
    stuck.goes_on.set()
    [processor] = tracing.provider._active_span_processor._span_processors
    processor._batch_processor._worker_thread.join(10)  # type: ignore[attr-defined]
    assert 0 < sum(stuck.batches) <= 64 + 8
    assert QUEUE < 10_000


def test_the_times_of_choices_are_one() -> None:
    """From the first that began to the last that ended."""
    one, other = AnswerTimes(1, 2, 5, 6), AnswerTimes(1.5, 1.75, 3, 9)
    assert one.merge(None) == one
    assert one.merge(other) == other.merge(one) == AnswerTimes(1, 1.75, 3, 9)


# over HTTP


@contextmanager
def receiver() -> Iterator[tuple[str, list[ExportTraceServiceRequest], list[dict[str, str]]]]:
    """An OTLP receiver on loopback: its address, and what it was sent."""
    found: list[ExportTraceServiceRequest] = []
    headers: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"]))))
            headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}/v1/traces", found, headers
        finally:
            listening.shutdown()
            thread.join()


MASTER = """
import os, sys
from service.contract.worker_state import WorkerState
from service.settings import Settings
from service.telemetry import traces
from service.timing import ResponseTimer
assert not any(name.startswith("opentelemetry.sdk") for name in sys.modules)
off = traces.start(Settings(slot="blue"), WorkerState.of_this_process(slot="blue", generation=1, version="1"))
assert off is None and not any(name.startswith("opentelemetry.sdk") for name in sys.modules)
for number in range(2):
    if os.fork() == 0:
        state = WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0")
        tracing = traces.start(Settings(slot="blue", traces=sys.argv[1]), state)
        scope = {"method": "GET", "path": "/", "headers": [], "state": {}}
        tracing.add(ResponseTimer(scope, None, None), 200, "1.0.0")
        tracing.close()
        os._exit(0)
for number in range(2):
    assert os.wait()[1] == 0
"""


def test_each_forked_worker_sends_its_own() -> None:
    """Over HTTP, until its last breath; the master, and a worker that sends none, do not even import the SDK."""
    with receiver() as (endpoint, found, headers):
        env = {**os.environ, "OTEL_EXPORTER_OTLP_HEADERS": "x-key=abc"}
        subprocess.run([sys.executable, "-c", MASTER, endpoint], check=True, env=env)
    sent = [resource for request in found for resource in request.resource_spans]
    assert len(sent) == 2
    labels = [{one.key: one.value.string_value for one in resource.resource.attributes} for resource in sent]
    assert {label["service.name"] for label in labels} == {"glm"}
    assert len({label["service.instance.id"] for label in labels}) == 2
    assert [one["x-key"] for one in headers] == ["abc"] * 2


def ended_record() -> Record:
    """A deploy that was rolled back in its canary."""
    steps = [Step(phase=phase, at=f"2026-01-01T00:00:0{second}.000+00:00")
             for second, phase in enumerate(("preflight", "start", "canary", "rollback"))]  # fmt: skip
    return Record(
        id="20260101-000000-01", kind="deploy", version="1.1.0", slot="green", steps=steps, outcome="rolled back",
        reason="p95 0.77 s, live slot 0.51 s", started_at="2026-01-01T00:00:00.000+00:00",
        ended_at="2026-01-01T00:00:07.500+00:00",
    )  # fmt: skip


def test_a_rollout_is_a_span_with_its_phases() -> None:
    """Of the times in its record, so that it is whole whoever ended it; a rollback is an error."""
    exporter = InMemorySpanExporter()
    spans.add(ended_record(), exporter)
    found = by_name(exporter)
    root = found.pop("deploy 1.1.0")
    assert root.parent is None
    assert list(found) == ["preflight", "start", "canary", "rollback"]
    assert all(span.parent == root.context for span in found.values())
    assert root.start_time
    assert root.end_time
    bounds = [(span.start_time or 0) - root.start_time for span in found.values()]
    assert bounds == [0, 1_000_000_000, 2_000_000_000, 3_000_000_000]
    assert root.end_time - root.start_time == 7_500_000_000
    assert (found["rollback"].end_time, root.status.status_code.name) == (root.end_time, "ERROR")
    attributes = root.attributes or {}
    assert (attributes["glm.rollout"], attributes["glm.outcome"]) == ("20260101-000000-01", "rolled back")


def test_a_rollout_is_sent_where_the_service_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it has ended, once; with the headers of glm.env; and to nobody without the setting."""
    monkeypatch.delenv("GLM_TRACES", raising=False)
    host = Host(True, tmp_path, tmp_path, tmp_path, tmp_path, tmp_path / "glm.env")
    with receiver() as (endpoint, found, headers):
        for settings in ("", f"GLM_TRACES={endpoint}\nOTEL_EXPORTER_OTLP_HEADERS=x-key=abc\n"):
            host.settings.write_text(settings)
            journal = Journal(host)
            entry = begin(journal, "deploy", "1.0.0", "blue")
            with journal.lock():
                entry.enter("preflight")
                entry.end("refused", reason="no room")
    [request] = found
    names = [span.name for scope in request.resource_spans[0].scope_spans for span in scope.spans]
    assert sorted(names) == ["deploy 1.0.0", "preflight"]
    assert headers[0]["x-key"] == "abc"
