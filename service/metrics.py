"""What Prometheus is told. With PROMETHEUS_MULTIPROC_DIR set, every process that shares the directory is in the text.

The unit sets it to one directory for all generations of the host, so that a scrape sees the whole rollout whichever
worker answers it. Leaving workers are to be reported with `forget`, else what they had in flight is counted for ever.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

# prometheus_client opens files there as soon as a metric exists, and decides at import whether it does so at all.
if _directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    Path(_directory).mkdir(parents=True, exist_ok=True)

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine import Usage
from service.identity import Identity

__all__ = ["CONTENT_TYPE", "Measure", "Metrics", "forget", "render", "set_load_seconds"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
CLIENT_GONE = "499"  # nginx's number for a client that left before its answer was complete
WHO = ("version", "slot")

_requests = Counter("glm_requests_total", "Requests ended, by status.", (*WHO, "route", "status"))
_seconds = Histogram("glm_request_seconds", "From head to last byte.", (*WHO, "route"), buckets=SECONDS)
_first = Histogram("glm_time_to_first_token_seconds", "Until the first text of an answer.", WHO, buckets=SECONDS)
_in_flight = Gauge("glm_requests_in_flight", "Requests being answered.", WHO, multiprocess_mode="livesum")
_tokens = Counter("glm_generated_tokens_total", "Tokens of completed answers.", WHO)
_running = Gauge("glm_engine_running", "Answers being generated.", WHO, multiprocess_mode="livesum")
_queued = Gauge("glm_engine_waiting", "Answers that wait for a row.", WHO, multiprocess_mode="livesum")
_kv_used = Gauge("glm_engine_kv_tokens", "Tokens of cache that are promised.", WHO, multiprocess_mode="livesum")
_kv_all = Gauge("glm_engine_kv_capacity_tokens", "Tokens that the cache holds.", WHO, multiprocess_mode="livesum")
_mirrored = Counter("glm_mirrored_total", "Requests asked of the candidate too.", (*WHO, "outcome"))
_load = Gauge("glm_model_load_seconds", "From start to ready.", WHO, multiprocess_mode="livemax")


@dataclass(frozen=True)
class Metrics:
    """The metrics of one version in one slot."""

    version: str
    slot: str

    def first_token(self, seconds: float) -> None:
        """Note how long a client waited for the first text."""
        _first.labels(self.version, self.slot).observe(seconds)

    def tokens(self, count: int) -> None:
        """Note the tokens of a completed answer."""
        _tokens.labels(self.version, self.slot).inc(count)

    def engine(self, usage: Usage) -> None:
        """Note what the engine does now. A scrape may be answered by another worker, so nobody is asked then."""
        who = (self.version, self.slot)
        _running.labels(*who).set(usage.running)
        _queued.labels(*who).set(usage.waiting)
        _kv_used.labels(*who).set(usage.kv_tokens)
        _kv_all.labels(*who).set(usage.kv_capacity)

    def mirrored(self, outcome: str) -> None:
        """Note what became of a request that the candidate was to be asked too."""
        _mirrored.labels(self.version, self.slot, outcome).inc()

    def begun(self) -> None:
        """Note a request that is now in flight."""
        _in_flight.labels(self.version, self.slot).inc()

    def ended_as(self, version: str) -> Metrics:
        """Take a request that met this version to the one that answered it."""
        if version == self.version:
            return self
        other = Metrics(version, self.slot)
        _in_flight.labels(self.version, self.slot).dec()
        other.begun()
        return other

    def ended(self, route: str, status: str, seconds: float) -> None:
        """Note that it no longer is, and how it went."""
        _in_flight.labels(self.version, self.slot).dec()
        _requests.labels(self.version, self.slot, route, status).inc()
        _seconds.labels(self.version, self.slot, route).observe(seconds)


class Measure:
    """ASGI middleware: counts and times every request under its route's template, never under its path.

    What came through the slot's own door (checks, mirrored requests) is no client's and has `door` for its route. A
    request counts for the version whose weights answered it, where any did.
    """

    def __init__(self, app: ASGIApp, identity: Identity) -> None:
        self.app = app
        self.identity = identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, complete, began = 500, False, time.monotonic()

        async def note(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        failed = False
        met = Metrics(self.identity.version, self.identity.slot)
        met.begun()
        try:
            await self.app(scope, receive, note)
        except Exception:
            failed = True
            raise
        finally:
            outcome = "500" if failed else str(status) if complete else CLIENT_GONE
            route = "door" if scope.get("state", {}).get("door") else getattr(scope.get("route"), "path", "other")
            answered = met.ended_as(scope.get("state", {}).get("version", met.version))
            answered.ended(route, outcome, time.monotonic() - began)


def render() -> bytes:
    """Write all metrics as Prometheus text, of all processes that share PROMETHEUS_MULTIPROC_DIR when it is set."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def set_load_seconds(version: str, slot: str, seconds: float) -> None:
    """Note how long a worker took until it was ready."""
    _load.labels(version, slot).set(seconds)


def forget(pid: int) -> None:
    """Drop the live gauges of a worker that has gone; its counters stay."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
