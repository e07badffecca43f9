"""Traces by OpenTelemetry: one span for each request of a client, with spans for its phases, when it has ended."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from service.contract.route import Route, worker_name
from service.contract.worker_state import WorkerState
from service.settings import Settings
from service.timing import PROBES, ResponseTimer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Traces", "start"]

QUEUE = 4096  # spans that wait to be sent; what is beyond is dropped
_BATCH = 512  # spans
_DELAY = 1000  # milliseconds between two batches
_TIMEOUT = 5  # seconds for a batch
_CLOSE = 2.0  # seconds for what is left
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))
_CONTEXT = ("traceparent", "tracestate")

log = logging.getLogger("service")


class TextMapPropagator(Protocol):
    """The part of OpenTelemetry's that is used."""

    def extract(self, carrier: Any) -> Any:
        """Return the context that headers have."""


class Traces:
    """Makes the spans of requests. A thread sends them in batches, and drops them if nobody takes them.

    The client's trace is taken over from `traceparent`, with its decision whether the request is traced. The spans have
    neither headers nor anything of a body.

    One worker has one, made after the process was forked: threads do not survive that.
    """

    def __init__(self, exporter: SpanExporter, share: float, state: WorkerState) -> None:
        """Raises ImportError without opentelemetry-sdk. `share`: part of the requests whose client has not decided."""
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._worker = worker_name(state.slot, state.generation, state.pid)
        self._labels = {"glm.slot": state.slot, "glm.generation": state.generation}
        resource = Resource.create(
            {"service.name": os.environ.get("OTEL_SERVICE_NAME", "glm"), "service.instance.id": self._worker}
        )
        self.provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)), resource=resource, shutdown_on_exit=False
        )
        self.provider.add_span_processor(
            BatchSpanProcessor(
                exporter, max_queue_size=QUEUE, schedule_delay_millis=_DELAY, max_export_batch_size=_BATCH
            )
        )
        self._trace = trace
        self._tracer = self.provider.get_tracer("glm")
        self._propagator: TextMapPropagator = TraceContextTextMapPropagator()

    def add(
        self,
        timer: ResponseTimer,
        status: int,
        version: str,
        error: str | None = None,
        route: Route | None = None,
        handoff: tuple[float, float] | None = None,
    ) -> None:
        """Add the spans of a request that has ended; probes only if they failed.

        `handoff`: when its connection was sent and received, in monotonic seconds, if the request waited for that.
        """
        scope = timer.scope
        if scope["path"] in PROBES and status < 400:
            return
        epoch = time.time_ns() - time.monotonic_ns()

        def at(seconds: float) -> int:
            return epoch + int(seconds * 1e9)

        begin, end = timer.span
        phases = {"handoff": handoff} if handoff else {}
        if times := scope["state"].get("times"):
            phases |= times.phases
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        path = getattr(scope.get("route"), "path", None)
        span = self._tracer.start_span(
            f"{method} {path}" if path else method,
            self._propagator.extract(self._carrier(scope)),
            kind=self._trace.SpanKind.SERVER,
            start_time=at(handoff[0] if handoff else begin),
            attributes={
                name: value
                for name, value in {
                    **self._labels,
                    "http.request.method": method,
                    "http.route": path,
                    "http.response.status_code": status,
                    "error.type": error,
                    "glm.version": version,
                    "glm.request_id": scope["state"].get("request_id"),
                    "glm.accepted_by": route.accepted_by if route else self._worker,
                    "glm.handed_over_by": route.handed_over_by if route else None,
                    "glm.handovers": route.handovers if route else 0,
                    **self._tokens(scope["state"].get("tokens")),
                }.items()
                if value is not None
            },
        )
        if span.is_recording():
            within = self._trace.set_span_in_context(span)
            for name, (first, last) in phases.items():
                self._tracer.start_span(name, within, start_time=at(first)).end(at(last))
            if status >= 500:
                span.set_status(self._trace.StatusCode.ERROR)
        span.end(at(end))

    def close(self) -> None:
        """Send what is left, for two seconds at most; not for the event loop."""
        closing = threading.Thread(target=self.provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_CLOSE)

    @staticmethod
    def _carrier(scope: Any) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if (key := name.decode("latin-1")) in _CONTEXT:
                found.setdefault(key, []).append(value.decode("latin-1"))
        return found

    @staticmethod
    def _tokens(tokens: tuple[int, int] | None) -> dict[str, int]:
        if tokens is None:
            return {}
        return {"gen_ai.usage.input_tokens": tokens[0], "gen_ai.usage.output_tokens": tokens[1]}


def start(settings: Settings, state: WorkerState) -> Traces | None:
    """Return what traces this worker's requests; None if the settings turn it off, and logged if it is not possible.

    OTEL_EXPORTER_OTLP_HEADERS and the other variables of OpenTelemetry's exporter apply.
    """
    if not settings.traces:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Traces(OTLPSpanExporter(endpoint=settings.traces, timeout=_TIMEOUT), settings.traces_share, state)
    except ImportError:
        log.warning("GLM_TRACES has no effect: install the extra, pip install 'glm-handover[traces]'")
        return None
