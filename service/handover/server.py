"""The server of one worker: Uvicorn's, with a gate in front of the listening socket, and with the handoff."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

from uvicorn.config import Config
from uvicorn.server import Server

from service.contract.route import Route, worker_name
from service.contract.samples import SampleRing
from service.contract.worker_state import Ledger, WorkerStateFile
from service.handover.acceptor import Acceptor, Arrivals
from service.handover.clients import Clients, MovableConnection, address_of
from service.handover.connection import Connection
from service.handover.fd_passing import FdReceiver, Outcome
from service.handover.idle import IdleConnection, IdleConnections, peek
from service.handover.plain_errors import plain_error
from service.handover.protocol import RequestProtocol
from service.handover.read_rate import ReadRate
from service.handover.recorder import Recorder
from service.handover.sender import ConnectionSender
from service.handover.slices import Slices
from service.handover.slow_clients import SlowClients
from service.handover.supervisor import Supervisor
from service.handover.turns import Turns
from service.logs import AccessLog
from service.metrics import Metrics
from service.routing.canary import Side
from service.routing.mirror import Mirror, MirrorOutcome
from service.routing.ownership import Gate
from service.settings import Settings
from service.telemetry import traces

__all__ = ["SlotServer"]

TICK = 0.02  # seconds after which `live` is read again even without a request
_TICKS_PER_HOUSEKEEPING = 5  # Uvicorn's own tick is due every 100 ms
_ORPHAN_DRAIN = 3.0  # seconds to finish requests after the master was killed; clients wait for the next one meanwhile

logger = logging.getLogger("gunicorn.error")


class SlotServer(Server):
    """Accepts from the `public` sockets while the gate is open, and always from the `internal` and the `handoff` one.

    It ends at a signal, or when the master was killed: systemd restarts the unit when the last worker has exited.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        gate: Gate,
        state_file: WorkerStateFile,
        *,
        public: list[socket.socket],
        internal: socket.socket,
        handoff: socket.socket,
        supervisor: Supervisor,
    ) -> None:
        super().__init__(config)
        self.settings = settings
        self.gate = gate
        self.state = state_file.state
        self.samples = SampleRing(state_file.path.with_suffix(".samples"), self.state)
        access = AccessLog(settings.access_log, settings.access_log_rate)
        self.recorder = Recorder(self.state, self.samples, gate, access, traces.start(settings, self.state))
        self.mirror = Mirror(gate, self.samples, self._count_mirrored)
        self.clients = Clients(settings)
        self.idle = IdleConnections(self, config.timeout_keep_alive)
        self.busy: set[RequestProtocol] = set()
        self.slow_clients = SlowClients()
        self.turns = Turns()
        self.read_rate = ReadRate(settings.max_read_rate)
        self._state_file = state_file
        self.sender = ConnectionSender(self, worker_name(self.state.slot, self.state.generation, self.state.pid))
        self._public = Acceptor(public, self._admit_client)
        self._internal = Acceptor([internal], lambda client: self._admit(client, public=False))
        self._receiver = FdReceiver(handoff, self._adopt)
        self.supervisor = supervisor
        self._is_open = self._takes_requests = False
        self.is_leaving = self._vacated = False
        self._orphaned_at: float | None = None
        self._cut_now = False
        self._arrivals = Arrivals()
        self._slices = Slices(self.move, self.follow)

    def _count_mirrored(self, outcome: MirrorOutcome) -> None:
        Metrics(self.state.version, self.state.slot).count_mirrored(outcome)  # a weight swap changes the version

    # called by the connections

    @property
    def ledger(self) -> Ledger:
        """The counts of this worker."""
        return self.state.ledger

    @property
    def is_serving(self) -> bool:
        """Whether this worker accepts public connections now."""
        return self._is_open

    @property
    def answers_all(self) -> bool:
        """Whether every request of a client is answered here: this generation is live, and there is no canary."""
        return self.gate.recent.answers_all and not self.answers_none

    def keeps(self, connection: MovableConnection) -> bool:
        """Return whether the connection's next request is answered here.

        Always true for the internal socket; for a client connection, while this generation owns its side.
        """
        return not connection.public or (not self.answers_none and self.gate.is_open(connection.side))

    @property
    def answers_none(self) -> bool:
        """Whether it takes no requests, whatever `live` says: it leaves, or has vacated."""
        return self.is_leaving or self._vacated

    # startup, main loop, shutdown

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Begin to accept from the internal and the handoff socket; the main loop opens the gate."""
        await self.lifespan.startup()
        self._receiver.start()
        self._internal.start()
        self.idle.start()
        self.servers = []
        self.started = True

    async def main_loop(self) -> None:
        """Follow `live` every TICK, until a signal ends the worker or its master has ended."""
        ticks = 0
        while not self.should_exit and self.supervisor.is_running:
            self.follow()
            if ticks % _TICKS_PER_HOUSEKEEPING == 0:
                self.recorder.access.tick()
                self.idle.pass_time()
                if await self.on_tick(ticks // _TICKS_PER_HOUSEKEEPING):
                    return
            ticks += 1
            await asyncio.sleep(TICK)

    def follow(self) -> None:
        """Open or close the gate according to `live`, and pass on the connections that this generation does not own."""
        self.gate.look()
        is_open = self.gate.is_open() and not self.answers_none
        if is_open != self._is_open:
            self._is_open = is_open
            self.state.set_gate(is_open)
            logger.info("gate %s (%s %s)", self.state.gate, self.state.slot, self.state.version)
        if is_open:
            self._public.start()
        else:
            self._public.stop()
        if self._vacated and not self.is_leaving:
            self._receive_while_vacated()
        owned: dict[Side, bool] = {
            "live": is_open,
            "candidate": not self.answers_none and self.gate.is_open("candidate"),
        }
        takes_requests = any(owned.values())
        if self._takes_requests and not takes_requests:
            for connection in self.busy:
                connection.note_gate_closed()
        self._takes_requests = takes_requests
        if not all(owned.values()):
            self._slices.each(lambda: (one for one in self._connections() if not self.keeps(one)))
        self._time_clients()
        self.mirror.follow()
        self.publish_state()

    def _time_clients(self) -> None:
        """Let the time pass for slow clients. If no other process can answer, new requests wait for this one to end."""
        self.slow_clients.pass_time(hurry=self.answers_none and self.gate.is_open())

    def publish_state(self) -> None:
        """Update the metrics and the state file.

        In this order: what the ledger of a worker that is killed has, the metrics have too.
        """
        self.state.connections = len(self.clients)
        self.state.in_flight = sum(connection.in_flight for connection in self.busy)
        self.recorder.publish(self.state.in_flight)
        self._state_file.publish()

    async def vacate(self, is_wanted: Callable[[], bool]) -> bool:
        """Take no requests, although `live` may lead here, and return True once those in flight are finished.

        Clients and their idle connections wait in the backlogs of the public and the handoff socket meanwhile; once
        another slot is live it gets them from here. Returns False if `is_wanted` does before.
        """
        self._vacated = True
        self._internal.stop()
        self.follow()
        while self._receiver.is_expecting or self._arrivals or any(one.in_flight for one in self.busy):
            if not is_wanted():
                return False
            for connection in self._connections():
                if not connection.public:
                    connection.shutdown()
            await asyncio.sleep(TICK)
        return True

    def serve_again(self) -> None:
        """Follow `live` again after `vacate`."""
        self._vacated = False
        if not self.is_leaving:
            self._receiver.start()
            self._internal.start()
            self.follow()

    def _receive_while_vacated(self) -> None:
        """Leave connections in the backlog of the handoff socket until another slot is live, which they are for."""
        if self.gate.is_open():
            self._receiver.pause()
        else:
            self._receiver.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Pass idle connections on, finish the requests in flight, and cut those that exceed the drain time."""
        self.is_leaving = True
        self.state.phase = "leaving"
        self._close_handoff()
        await self.mirror.close()
        self.follow()
        self._internal.stop()
        deadline = time.monotonic() + self.settings.drain
        while self._receiver.is_expecting or self._arrivals or self.server_state.connections or self.idle:
            if not self.supervisor.is_running:
                deadline = min(deadline, self._orphan_deadline())
            if self._cut_now or time.monotonic() >= deadline:
                self._cut_all()
            self._slices.each(self._connections)
            self._time_clients()
            self.recorder.access.tick()
            self.publish_state()
            if self.config.callback_notify:
                await self.config.callback_notify()  # else Gunicorn would kill a worker that drains for long
            await asyncio.sleep(TICK)
        self.idle.close()
        await self.lifespan.shutdown()
        await asyncio.to_thread(self.recorder.close)
        self.state.phase = "gone"
        self.publish_state()

    def _close_handoff(self) -> None:
        """Receive what waits at the handoff socket, then leave it to the other workers; without a master, remove it."""
        if not self.supervisor.is_running:
            self.supervisor.withdraw()
        self._receiver.stop()

    def _orphan_deadline(self) -> float:
        if self._orphaned_at is None:
            self._orphaned_at = time.monotonic()
            logger.error("the master was killed: requests in flight have %s s to finish", _ORPHAN_DRAIN)
            self._close_handoff()
        return self._orphaned_at + _ORPHAN_DRAIN

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin the shutdown: on TERM the requests in flight are finished, on QUIT and INT they are cut."""
        self.should_exit = True
        if sig != signal.SIGTERM:
            self._cut_now = True

    # the sockets

    def _adopt(self, client: socket.socket, unread: bytes, note: bytes) -> None:
        """Admit a connection that was handed over; it counts although its client may have disconnected meanwhile."""
        self.ledger.adopted += 1
        address = address_of(client)
        if unread or peek(client) is not None:
            self._admit(client, public=True, address=address, route=Route.parse(note), unread=unread)
        else:
            self.idle.add(client, address, self.gate.own_side, note, asyncio.get_running_loop().time())

    def _admit_client(self, client: socket.socket) -> None:
        address = address_of(client)
        if self.clients.admits(address):
            self._admit(client, public=True, address=address)
            return
        self.recorder.refuse(address, 503)
        self.recorder.count_refused(503)
        with client, suppress(OSError):
            client.send(plain_error(503, self.server_state.default_headers))
            client.shutdown(socket.SHUT_WR)

    def _admit(self, client: socket.socket, *, public: bool, address: str = "", **options: Any) -> None:
        def connection() -> Connection:
            return Connection(self.config, self.server_state, self, public=public, address=address, **options)

        if self._arrivals.add(client, connection) and public:
            self.clients.expect(address)

    def resume(self, connection: IdleConnection) -> None:
        """Read the request that has begun on a connection that was idle."""
        self._admit(
            connection.client,
            public=True,
            address=connection.address,
            route=connection.route,
            side=connection.side,
            idle_since=connection.idle_since,
        )

    # the connections

    def _connections(self) -> Iterator[MovableConnection]:
        """Return all connections; first those that may have a request soon."""
        yield from [connection for connection in self.server_state.connections if isinstance(connection, Connection)]
        yield from self.idle.bundles()

    def move(self, connection: MovableConnection) -> Outcome | None:
        """Pass the connection to its owner; without one, shut it down if this worker leaves."""
        outcome = connection.move() if connection.public else None
        has_no_owner = outcome is Outcome.NO_RECEIVER or not connection.public
        if has_no_owner and (self.is_leaving or not self.settings.handoff):
            connection.shutdown()
        return outcome

    def _cut_all(self) -> None:
        """Abort the connections that cannot be passed on, with their requests."""
        for connection in self._connections():
            if self.move(connection) is not Outcome.SENT:
                connection.cut()
