"""The server of one worker: Uvicorn's, with a gate before the listening socket and a way out for its connections."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import FrameType
from typing import Any

from uvicorn.config import Config
from uvicorn.server import Server

from service.contract.samples import Samples
from service.contract.worker_state import Account, Ledger
from service.handover.connection import Connection
from service.handover.fd_passing import Outcome, Taker, give
from service.metrics import Metrics
from service.routing.canary import Side
from service.routing.mirror import Mirror
from service.routing.ownership import Gate
from service.settings import Settings

TICK = 0.02  # seconds: how soon a worker follows `live`; a look costs 4 µs, and unlike inotify it cannot miss one
_TICKS_PER_HOUSEKEEPING = 5  # Uvicorn expects its own tick every 100 ms
_BURST = 64  # connections accepted in one go, so that siblings get their share
_BREATH = 1.0  # seconds without accepting after the process ran out of descriptors

logger = logging.getLogger("gunicorn.error")


class SlotServer(Server):
    """Accepts from three sockets: the public one while the gate is open, the slot's door and the handoff always."""

    def __init__(
        self,
        config: Config,
        settings: Settings,
        gate: Gate,
        account: Account,
        *,
        public: list[socket.socket],
        door: socket.socket,
        handoff: socket.socket,
        has_siblings: Callable[[], bool],
    ) -> None:
        super().__init__(config)
        self.settings = settings
        self.gate = gate
        self.account = account
        self.samples = Samples(account.path.with_suffix(".samples"))
        self.mirror = Mirror(gate, self.samples, Metrics(account.version, account.slot).mirrored)
        self._public = public
        self._door = door
        self._handoff = handoff
        self._has_siblings = has_siblings
        self.guests: set[Connection] = set()
        self.busy: set[Connection] = set()
        self._is_open = self._takes = False
        self._accepting = False
        self._accept_again_at = 0.0
        self._leaving = False
        self._cut_now = False
        self._arriving: set[Coroutine[Any, Any, object]] = set()

    # what a connection asks of us

    @property
    def ledger(self) -> Ledger:
        """Where this worker's connections count."""
        return self.account.ledger

    @property
    def is_serving(self) -> bool:
        """Whether this worker takes public connections now."""
        return self._is_open

    def keeps(self, connection: Connection) -> bool:
        """Whether the connection's next request is ours: a door's always, a public one's while the gate is open."""
        return not connection.public or (not self._leaving and self.gate.is_open(connection.side))

    def pass_on(self, client: socket.socket, side: Side, held: bytes = b"") -> Outcome:
        """Hand a client's connection to its owner; to the live one where the candidate does not take it."""
        outcome = self._pass_to(client, side, held)
        return self._pass_to(client, "live", held) if side != "live" and outcome is Outcome.NOBODY else outcome

    def _pass_to(self, client: socket.socket, side: Side, held: bytes) -> Outcome:
        """Pass it to the owner, who may be a sibling of ours if we alone are leaving."""
        owner = self.gate.owner(side)
        if not self.settings.handoff or owner is None:
            return Outcome.NOBODY
        if self.gate.is_open(side) and not (self._leaving and self._has_siblings()):
            return Outcome.NOBODY
        return give(client.fileno(), owner, held)

    # the life of the server

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Watch the door and the handoff socket; the gate is looked at in the main loop."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        self._taker = Taker(
            self._handoff, lambda client, held: self._admit(client, public=True, adopted=True, held=held)
        )
        self._taker.start()
        loop.add_reader(self._door.fileno(), self._accept, self._door, False)
        self.servers = []
        self.started = True

    async def main_loop(self) -> None:
        """Follow `live` every tick until we are told to leave."""
        ticks = 0
        while not self.should_exit:
            self.follow()
            if ticks % _TICKS_PER_HOUSEKEEPING == 0 and await self.on_tick(ticks // _TICKS_PER_HOUSEKEEPING):
                return
            ticks += 1
            await asyncio.sleep(TICK)

    def follow(self) -> None:
        """Open or shut the gate as `live` says, and send the connections that are not ours to their owner."""
        is_open = self.gate.is_open() and not self._leaving
        if is_open != self._is_open:
            self._is_open = is_open
            self.account.set_gate(is_open)
            logger.info("gate %s (%s %s)", self.account.gate, self.account.slot, self.account.version)
        accepting = is_open and time.monotonic() >= self._accept_again_at
        if accepting != self._accepting:
            self._set_accepting(accepting)
        ours: dict[Side, bool] = {"live": is_open, "candidate": not self._leaving and self.gate.is_open("candidate")}
        takes = any(ours.values())
        if self._takes and not takes:
            for connection in self.busy:
                connection.note_gate_shut()
        self._takes = takes
        if not all(ours.values()):
            for connection in list(self.guests):
                if not ours[connection.side]:
                    self._send_home(connection)
        self.mirror.follow()
        self.report()

    def report(self) -> None:
        """Bring the state file up to date."""
        self.account.connections = len(self.guests)
        self.account.in_flight = sum(connection.in_flight for connection in self.busy)
        self.account.write()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Leave: give idle connections away, finish what was begun, cut what outlives the drain time."""
        self._leaving = True
        self.account.phase = "leaving"
        self._taker.stop()
        await self.mirror.close()
        self.follow()
        asyncio.get_running_loop().remove_reader(self._door.fileno())
        deadline = time.monotonic() + self.settings.drain
        while self._taker.expects or self._arriving or self.server_state.connections:
            if self._cut_now or time.monotonic() >= deadline:
                self._cut_everyone()
            for connection in self._connections():
                self._send_home(connection)
            self.report()
            if self.config.callback_notify:
                await self.config.callback_notify()  # a worker that drains for long is not a hung one
            await asyncio.sleep(TICK)
        await self.lifespan.shutdown()
        self.account.phase = "gone"
        self.report()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """TERM: leave when everything begun is finished. QUIT and INT: leave now."""
        self.should_exit = True
        if sig != signal.SIGTERM:
            self._cut_now = True

    # the sockets

    def _set_accepting(self, accepting: bool) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._public:
            if accepting:
                loop.add_reader(listener.fileno(), self._accept, listener, True)
            else:
                loop.remove_reader(listener.fileno())
        self._accepting = accepting

    def _accept(self, listener: socket.socket, public: bool) -> None:
        for _ in range(_BURST):
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: whoever waits, waits in the backlog
                logger.error("cannot accept: %s; next try in %s s", error, _BREATH)  # noqa: TRY400
                if public:
                    self._set_accepting(False)
                    self._accept_again_at = time.monotonic() + _BREATH
                return
            client.setblocking(False)
            self._admit(client, public=public)

    def _admit(self, client: socket.socket, *, public: bool, adopted: bool = False, held: bytes = b"") -> None:
        def connection() -> Connection:
            return Connection(self.config, self.server_state, self, public=public, adopted=adopted, held=held)

        arrival = asyncio.get_running_loop().connect_accepted_socket(connection, client)
        try:
            # its first step makes the transport; a task would take that in the loop's next turn, milliseconds later
            arrived: asyncio.Future[None] = arrival.send(None)
        except OSError as error:  # gone before it was here
            logger.info("a client left on arrival: %s", error)
            client.close()
            return
        self._arriving.add(arrival)
        arrived.add_done_callback(lambda _: self._end(arrival))

    def _end(self, arrival: Coroutine[Any, Any, object]) -> None:
        self._arriving.discard(arrival)  # whatever its last step says: who leaves waits for those that are still here
        with suppress(StopIteration):
            arrival.send(None)

    # the connections

    def _connections(self) -> list[Connection]:
        return [connection for connection in self.server_state.connections if isinstance(connection, Connection)]

    def _send_home(self, connection: Connection) -> None:
        """Give the connection to its owner; where there is none, close it once we leave and it is idle."""
        outcome = connection.move() if connection.public else None
        abandoned = outcome is Outcome.NOBODY or not connection.public
        if abandoned and (self._leaving or not self.settings.handoff):
            connection.shutdown()  # closes it between requests, else says "Connection: close" with the answer

    def _cut_everyone(self) -> None:
        for connection in self._connections():
            connection.cut()
