"""The report of a load: values for JSON, and a table for the terminal."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.loadtest.losses import LossKind


class Switch(NamedTuple):
    """The first or the last of a client's consecutive responses by one version; times are CLOCK_MONOTONIC seconds."""

    sent: float
    answered: float
    version: str


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Loss(_Value):
    """Equal losses of one class; `at` (CLOCK_MONOTONIC seconds), `after_s` and `connection` are those of the first."""

    client: str
    kind: LossKind
    sent: str
    """The request."""
    came: str
    """What was received instead of the response."""
    at: float
    after_s: float
    """Seconds after the start of the load."""
    connection: str
    """The earlier responses on the connection."""
    count: int


class Latency(_Value):
    """Milliseconds from the last byte of the request (new connections: from the connect) to that of the response."""

    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class ClassReport(_Value):
    """The counts and times of one class of clients: sent = ok + lost."""

    clients: int
    sent: int
    ok: int
    lost: int
    latency: Latency
    longest_pause_ms: float
    by_version: dict[str, int]
    by_slot: dict[str, int]
    connections: int
    idle_closes: int
    """Connections that the server ended while they were idle; each is a loss."""
    announced_closes: int
    """Keep-alive connections that the server ended with `connection: close` in a response; no loss."""
    switches: list[Switch]
    """The first and the last of every run of consecutive responses by one version, for each client; the newest 4096."""


class Report(_Value):
    """The counts and times of the whole load: sent = ok + lost, and by_version sums to ok."""

    target: str
    started: float
    """CLOCK_MONOTONIC seconds."""
    seconds: float
    sent: int
    ok: int
    lost: int
    requests_per_second: float
    latency: Latency
    longest_pause_ms: float
    """The longest wait of any client for a connection, or for the next bytes of a response."""
    longest_pause_by: str
    longest_pause_at: float
    """When it ended, in CLOCK_MONOTONIC seconds."""
    own_lag_ms: float
    """The longest delay of the load's own event loop; a pause of that length may be caused by the load itself."""
    by_version: dict[str, int]
    by_slot: dict[str, int]
    by_class: dict[str, ClassReport]
    losses: list[Loss]

    @property
    def switches(self) -> list[Switch]:
        """Those of the busy clients, which see a switch first since they send without a pause, by time of response."""
        busy = self.by_class.get("busy")
        return sorted(busy.switches, key=lambda switch: switch.answered) if busy else []

    def last_response_by(self, version: str, *, sent_after: float) -> Switch | None:
        """Return the last response by `version` to a request that any client sent after that CLOCK_MONOTONIC time."""
        late = (
            switch
            for report in self.by_class.values()
            for switch in report.switches
            if switch.version == version and switch.sent > sent_after
        )
        return max(late, key=lambda switch: switch.sent, default=None)

    def table(self) -> RenderableType:
        """Return the report as a table with its losses; times in milliseconds."""
        table = Table(title=f"Load on {self.target}, {self.seconds:.1f} s", box=SIMPLE_HEAD)
        table.add_column("client", no_wrap=True)
        for column in ("n", "sent", "lost", "p50 ms", "p99 ms", "max ms", "pause ms", "conns"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, report in self.by_class.items():
            table.add_row(name, str(report.clients), *_row(report), str(report.connections))
        table.add_section()
        clients, connections = (
            sum(getattr(report, name) for report in self.by_class.values()) for name in ("clients", "connections")
        )
        table.add_row("all", str(clients), *_row(self), str(connections), style="bold")
        versions = ", ".join(f"{version}: {count}" for version, count in self.by_version.items()) or "none"
        result = Text(f"{self.lost} lost", style="bold red") if self.lost else Text("nothing lost", style="bold green")
        lines = [Text(f"{self.requests_per_second:.0f} requests/s; responses by version: {versions}"), result]
        lines += [
            Text(
                f"  {loss.count} x {loss.client} {loss.sent}: {loss.kind}: {loss.came} "
                f"(first after {loss.after_s:.3f} s, {loss.connection})"
            )
            for loss in self.losses
        ]
        return Group(table, *lines)


def _row(report: ClassReport | Report) -> tuple[str, ...]:
    latency = report.latency
    times = (latency.p50_ms, latency.p99_ms, latency.max_ms, report.longest_pause_ms)
    return (str(report.sent), str(report.lost), *(f"{ms:.1f}" for ms in times))
