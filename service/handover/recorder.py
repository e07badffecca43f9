"""What the answers of one worker were like, for its samples and the metrics."""

from __future__ import annotations

from service.contract.samples import BROKEN_OFF, Origin, SampleRing
from service.contract.worker_state import WorkerState
from service.metrics import Metrics, count_request, flush
from service.routing.origin import origin_of
from service.routing.ownership import Gate
from service.timing import ResponseTimer

__all__ = ["Recorder"]

_INTERNAL_ROUTE = "internal"  # under which requests of the internal socket are counted
_OTHER_ROUTES = "other"


class Recorder:
    """Records each answer once, when it has ended; the metrics follow at the next `publish`."""

    def __init__(self, state: WorkerState, samples: SampleRing, gate: Gate) -> None:
        self._state, self._gate = state, gate
        self._samples = samples
        self._published = state.version

    def begin(self, timer: ResponseTimer) -> Origin:
        """Note that a client's request begins, and return its origin for `add`. Without a canary none is pinned."""
        origin = origin_of(timer.scope)
        if origin.is_pinned and not self._gate.reads_heads:
            origin = origin._replace(is_pinned=False)
        self._state.pinned += origin.is_pinned
        return origin

    def add(self, timer: ResponseTimer, origin: Origin | None) -> None:
        """Add an answer to the metrics and, if a client received it, to the samples.

        It counts for the version that the handler stored in the request's state, and under the template of its route,
        because clients choose paths freely. As a status the metrics have 500 for an answer that was broken off. A
        request of the internal socket has no `origin`.
        """
        scope, status = timer.scope, timer.status or 500
        if origin:
            timer.write(self._samples, origin)
            self._state.pinned -= origin.is_pinned
        count_request(
            scope["state"].get("version") or self._state.version,
            self._state.slot,
            getattr(scope.get("route"), "path", _OTHER_ROUTES) if origin else _INTERNAL_ROUTE,
            "500" if status == BROKEN_OFF else str(status),
            timer.seconds,
        )

    def publish(self, in_flight: int) -> None:
        """Update the metrics of all requests since the last call, and of those in flight."""
        flush()
        version, slot = self._state.version, self._state.slot
        if self._published != version:
            Metrics(self._published, slot).set_in_flight(0)
            self._published = version
        Metrics(version, slot).set_in_flight(in_flight)
