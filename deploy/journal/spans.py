"""A rollout as a trace of OpenTelemetry: one span with a child for each phase, made of its record when it has ended.

The record has everything, so that the trace is whole also if another process than the first one ended the rollout.
"""

from __future__ import annotations

import os
import socket
import threading
from datetime import datetime
from typing import TYPE_CHECKING

from deploy.host import Host
from deploy.journal.announcement import operator
from deploy.journal.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["add", "export"]

_TIMEOUT = 3.0  # seconds; the rollout has ended, and its operator waits
_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
_FAILED = ("failed", "not ready", "rolled back")


def export(host: Host, record: Record) -> None:
    """Send the trace of a rollout that has ended, if GLM_TRACES of the service's settings says where to; waits 3 s.

    Nothing is sent without the extra `traces`, which the service logs when it starts.
    """
    endpoint = os.environ.get("GLM_TRACES") or host.setting("TRACES")
    if not endpoint:
        return
    sending = threading.Thread(target=_send, args=(endpoint, host.variable(_HEADERS), record), daemon=True)
    sending.start()
    sending.join(_TIMEOUT)


def add(record: Record, exporter: SpanExporter) -> None:
    """Give an exporter the spans of a record."""
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "glmctl", "host.name": socket.gethostname()})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("glm")
    began, ended = _nanoseconds(record.started_at), _nanoseconds(record.ended_at or record.started_at)
    attributes = {
        "glm.rollout": record.id,
        "glm.strategy": record.strategy,
        "glm.version": record.version,
        "glm.slot": record.slot,
        "glm.previous_version": record.previous,
        "glm.outcome": record.outcome,
        "glm.reason": record.reason,
        "glm.operator": operator(),
        "glm.lost": record.receipt.lost if record.receipt else None,
    }
    root = tracer.start_span(
        f"{record.kind} {record.version}",
        start_time=began,
        attributes={name: value for name, value in attributes.items() if value is not None},
    )
    within = trace.set_span_in_context(root)
    begins = [_nanoseconds(step.at) for step in record.steps]
    for step, begin, end in zip(record.steps, begins, [*begins[1:], ended], strict=True):
        tracer.start_span(step.phase, within, start_time=begin).end(end)
    if record.outcome in _FAILED:
        root.set_status(trace.StatusCode.ERROR, record.outcome)
    root.end(ended)
    provider.shutdown()


def _send(endpoint: str, headers: str | None, record: Record) -> None:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.util.re import parse_env_headers
    except ImportError:
        return
    of_service = parse_env_headers(headers, liberal=True) if headers else None
    add(record, OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT, headers=of_service))


def _nanoseconds(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1000) * 1_000_000
