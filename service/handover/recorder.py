"""What the answers of one worker were like, for its samples, the metrics, the access log and traces."""

from __future__ import annotations

from service.contract.route import Route
from service.contract.samples import BROKEN_OFF, CLIENT_GONE, Origin, SampleRing
from service.contract.worker_state import WorkerState
from service.handover.plain_errors import KINDS, TEXTS
from service.logs.access import INTERNAL, AccessLog, Entry
from service.metrics import Metrics, count_error, count_request, flush
from service.refusals import RefusalLog
from service.routing.origin import origin_of
from service.routing.ownership import Gate
from service.telemetry.traces import Traces
from service.timing import ResponseTimer

__all__ = ["Recorder"]

_INTERNAL_ROUTE = "internal"  # under which requests of the internal socket are counted
_OTHER_ROUTES = "other"
_ERRORS = {CLIENT_GONE: "client_gone", BROKEN_OFF: "broken_off"}


class Recorder:
    """Records each answer once, when it has ended; metrics and access log follow at the next `publish` and `tick`."""

    def __init__(
        self, state: WorkerState, samples: SampleRing, gate: Gate, access: AccessLog, traces: Traces | None = None
    ) -> None:
        self._state, self._gate = state, gate
        self.access = access
        self._traces = traces
        self._samples = samples
        self._refusals = RefusalLog()
        self._published = state.version

    def begin(self, timer: ResponseTimer) -> Origin:
        """Note that a client's request begins, and return its origin for `add`. Without a canary none is pinned."""
        origin = origin_of(timer.scope)
        if origin.is_pinned and not self._gate.reads_heads:
            origin = origin._replace(is_pinned=False)
        self._state.pinned += origin.is_pinned
        return origin

    def add(
        self,
        timer: ResponseTimer,
        origin: Origin | None,
        address: str = "",
        route: Route | None = None,
        handoff: tuple[float, float] | None = None,
    ) -> None:
        """Add an answer to the metrics and, if a client received it, to the samples.

        It counts for the version that the handler stored in the request's state, and under the template of its route,
        because clients choose paths freely. As a status the metrics have 500 for an answer that was broken off. A
        request of the internal socket has no `origin`. `address` is that of the client, `route` and `handoff` tell how
        its connection came here, and when the request waited for that.
        """
        scope, status = timer.scope, timer.status or 500
        if origin:
            timer.write(self._samples, origin)
            self._state.pinned -= origin.is_pinned
        state, slot = scope["state"], self._state.slot
        version = state.get("version") or self._state.version
        error = KINDS.get(state.get("refused")) or _ERRORS.get(status) or state.get("error")
        if origin and error:
            count_error(version, slot, error)
        client = address if origin else INTERNAL
        if self.access.wants(scope["path"], status, client):
            self.access.add(
                Entry(
                    scope["method"],
                    (scope.get("raw_path") or scope["path"].encode()).decode("latin-1"),
                    status,
                    timer.seconds,
                    client,
                    version,
                    state.get("request_id", ""),
                    timer.first_seconds,
                    state.get("tokens"),
                    state.get("reason"),
                    state.get("times"),
                    route,
                    handoff and handoff[1] - handoff[0],
                )
            )
        if origin and self._traces:
            self._traces.add(timer, status, version, error, route, handoff)
        count_request(
            version,
            slot,
            getattr(scope.get("route"), "path", _OTHER_ROUTES) if origin else _INTERNAL_ROUTE,
            "500" if status == BROKEN_OFF else str(status),
            timer.seconds,
        )

    def refuse(self, address: str, status: int, method: str = "", path: str = "", reason: str | None = None) -> None:
        """Log a request or a connection that no application sees; see RefusalLog. What is not known of it is empty."""
        self._refusals.add(address, method or "-", path or "-", status, reason or TEXTS[status])

    def count_refused(self, status: int) -> None:
        """Count a request or a connection that no application sees, in glm_errors_total."""
        count_error(self._state.version, self._state.slot, KINDS[status])

    def publish(self, in_flight: int) -> None:
        """Update the metrics of all requests since the last call, and of those in flight."""
        flush()
        version, slot = self._state.version, self._state.slot
        if self._published != version:
            Metrics(self._published, slot).withdraw()
            self._published = version
        Metrics(version, slot).set_in_flight(in_flight)
        Metrics(version, slot).add_connections(self._state.ledger)

    def close(self) -> None:
        """Wait until what is left was written and sent, some seconds at most; not for the event loop."""
        self.access.close()
        if self._traces:
            self._traces.close()
