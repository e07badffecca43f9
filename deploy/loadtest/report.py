"""The load's report: values that travel as JSON, and a table for a terminal."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.loadtest.wire import Kind


class Switch(NamedTuple):
    """An answer at the edge of a run of answers by one version; times are CLOCK_MONOTONIC seconds."""

    sent: float
    answered: float
    version: str


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Loss(_Value):
    """One way in which requests were lost; `at` and `connection` are those of the first."""

    client: str
    kind: Kind
    sent: str
    came: str
    at: float
    after_s: float
    connection: str
    count: int


class Latency(_Value):
    """From the request's last byte (from the connect, on a new connection) to the answer's last, in ms."""

    p50_ms: float
    p99_ms: float
    max_ms: float


class ClassReport(_Value):
    """The account of one class of clients: sent = ok + lost."""

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
    """Connections that the server ended while the client was silent; each is a loss."""
    announced_closes: int
    """Keep-alive connections that the server ended with `connection: close` in an answer: no loss, the client knew."""
    switches: list[Switch]
    """For every run of answers by one version that a client met: its first and its last answer."""


class Report(_Value):
    """The account of the whole load: sent = ok + lost, and by_version sums to ok."""

    target: str
    started: float
    seconds: float
    sent: int
    ok: int
    lost: int
    requests_per_second: float
    latency: Latency
    longest_pause_ms: float
    """The longest time that any client waited for a connection, or for the next byte of an answer."""
    longest_pause_by: str
    longest_pause_at: float
    own_lag_ms: float
    """The longest time by which the load's own process was late; a pause of that size may be its own."""
    by_version: dict[str, int]
    by_slot: dict[str, int]
    by_class: dict[str, ClassReport]
    losses: list[Loss]

    @property
    def switches(self) -> list[Switch]:
        """Those of the busy clients, which ask without a pause and so see a switch first, in order of answers."""
        busy = self.by_class.get("busy")
        return sorted(busy.switches, key=lambda switch: switch.answered) if busy else []

    def last_answer_by(self, version: str, *, sent_after: float) -> Switch | None:
        """The last answer by `version` to a request that any client sent after that CLOCK_MONOTONIC time."""
        late = (
            switch
            for account in self.by_class.values()
            for switch in account.switches
            if switch.version == version and switch.sent > sent_after
        )
        return max(late, key=lambda switch: switch.sent, default=None)

    def table(self) -> RenderableType:
        """For people."""
        table = Table(title=f"Load on {self.target}, {self.seconds:.1f} s", box=SIMPLE_HEAD)
        table.add_column("client", no_wrap=True)
        for column in ("n", "sent", "lost", "p50 ms", "p99 ms", "max ms", "pause ms", "conns"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, account in self.by_class.items():
            table.add_row(name, str(account.clients), *_row(account), str(account.connections))
        table.add_section()
        clients, connections = (
            sum(getattr(account, name) for account in self.by_class.values()) for name in ("clients", "connections")
        )
        table.add_row("all", str(clients), *_row(self), str(connections), style="bold")
        versions = ", ".join(f"{version}: {count}" for version, count in self.by_version.items()) or "none"
        verdict = Text(f"{self.lost} lost", style="bold red") if self.lost else Text("nothing lost", style="bold green")
        lines = [Text(f"{self.requests_per_second:.0f} requests/s; answered by {versions}"), verdict]
        lines += [
            Text(
                f"  {loss.count} x {loss.client} {loss.sent}: {loss.kind}: {loss.came} "
                f"(first after {loss.after_s:.3f} s, {loss.connection})"
            )
            for loss in self.losses
        ]
        return Group(table, *lines)


def _row(account: ClassReport | Report) -> tuple[str, ...]:
    latency = account.latency
    times = (latency.p50_ms, latency.p99_ms, latency.max_ms, account.longest_pause_ms)
    return (str(account.sent), str(account.lost), *(f"{ms:.1f}" for ms in times))
