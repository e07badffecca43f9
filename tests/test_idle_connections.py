"""Idle client connections rest as bare sockets: nothing is lost when they rest, wake, move, end or time out."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.handover import fd_passing, protocol, sender, slices
from service.handover import idle as idle_module
from service.handover.connection import Connection
from service.handover.fd_passing import BUNDLE, Outcome
from tests.server_fixtures import GET, SLOW, TIMEOUT, Client, Host, Slot, running_host, until

REST_AFTER = 0.05  # seconds
KEEP_ALIVE = 0.4  # seconds
CLIENTS = 5


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of both servers that differ from the defaults."""
    return dict(getattr(request, "param", {}))


@pytest.fixture
async def host(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Host]:
    monkeypatch.setattr(protocol, "REST_AFTER", REST_AFTER)
    async with running_host(tmp_path, tmp_path_factory.mktemp("run"), **settings) as host:
        yield host


def resting(slot: Slot) -> int:
    return len(slot.server.idle)


async def rested_client(host: Host) -> Client:
    """Return a client that has had an answer of blue, and whose connection rests."""
    before = resting(host.blue)
    client = await host.client()
    assert (await client.ask()).slot == "blue"
    await until(lambda: resting(host.blue) == before + 1, "the rest")
    return client


@pytest.mark.anyio
async def test_an_idle_connection_rests_and_its_next_request_is_answered(host: Host) -> None:
    """It has neither transport nor protocol while it rests, and may rest again."""
    client = await rested_client(host)
    for _ in range(3):
        await until(lambda: not host.blue.server.server_state.connections, "the end of its transport")
        assert host.blue.holds(1)
        assert (await client.ask()).slot == "blue"
        await until(lambda: resting(host.blue) == 1, "the rest")
    assert host.blue.ledger.accepted == host.blue.ledger.completed == 4


@pytest.mark.anyio
async def test_the_request_that_ends_a_rest_is_read_at_once(host: Host) -> None:
    """Not in the next iteration of the event loop, which may be milliseconds later."""
    client = await rested_client(host)
    await until(lambda: not host.blue.server.server_state.connections, "the end of its transport")
    client.send(GET)
    while not host.blue.server.server_state.connections:  # noqa: ASYNC110  (one iteration of the event loop at a time)
        await asyncio.sleep(0)
    assert host.blue.ledger.accepted == 2
    assert (await client.reply()).slot == "blue"


@pytest.mark.anyio
async def test_a_connection_with_a_pipelined_request_does_not_rest(host: Host) -> None:
    """Although it is idle between two of them."""
    client = await host.client()
    client.send(3 * GET)
    [connection] = host.blue.connections
    assert isinstance(connection, Connection)
    async with asyncio.timeout(TIMEOUT):
        while host.blue.ledger.completed < 3:
            if connection.is_idle and host.blue.ledger.accepted:
                connection.rest()
            await asyncio.sleep(0)
    assert connection.rest()
    assert len(host.blue.connections) == 1, "it is not counted twice"
    for _ in range(3):
        assert (await client.reply()).slot == "blue"


@pytest.mark.anyio
async def test_a_connection_that_was_received_rests_at_once(host: Host) -> None:
    """Its route goes with it to the next owner; one whose client has sent already is answered at once."""
    clients = [await rested_client(host) for _ in range(2)]
    clients[1].send(GET)
    host.cut_over()
    await until(lambda: host.green.ledger.adopted == 2, "the move")
    assert (await clients[1].reply()).status == 200
    await until(lambda: resting(host.green) == 2, "the rest")
    for client in clients:
        assert (await client.ask()).slot == "green"
    for connection in host.green.connections:
        assert isinstance(connection, Connection)
        assert connection.route is not None
        assert connection.route.handovers == 1


@pytest.mark.anyio
@pytest.mark.parametrize("is_earlier", [False, True])
async def test_many_idle_connections_move(host: Host, is_earlier: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bundles; one by one to a receiver of an earlier version, which takes no bundles."""
    if is_earlier:
        monkeypatch.setattr(fd_passing, "SOCKET_NAME", "handoff.sock")
    clients = [await host.client() for _ in range(BUNDLE + 5)]
    await until(lambda: resting(host.blue) == len(clients), "the rest")
    sent: list[int] = []

    def send_bundle(connections: Sequence[tuple[int, bytes]], owner: Path) -> Outcome:
        outcome = fd_passing.send_bundle(connections, owner)
        if outcome is Outcome.SENT:
            sent.append(len(connections))
        return outcome

    monkeypatch.setattr(sender, "send_bundle", send_bundle)
    host.cut_over()
    assert sent == ([] if is_earlier else [BUNDLE, 5])
    await until(lambda: resting(host.green) == len(clients), "the move")
    assert host.blue.ledger.handed_out == host.green.ledger.adopted == len(clients)
    for client in clients:
        assert (await client.ask()).slot == "green"


@pytest.mark.anyio
@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_goes_ends_the_rest(host: Host, reset: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it closes its connection or resets it."""
    client = await rested_client(host)
    monkeypatch.setattr(host.blue.server, "resume", None)  # no transport is made for that
    if reset:
        client.abort()
    else:
        client.writer.close()
    await until(lambda: not host.blue.connections, "the end")
    assert resting(host.blue) == 0


@pytest.mark.anyio
async def test_connections_of_the_internal_socket_do_not_rest(host: Host) -> None:
    """They cannot be passed on, and are few."""
    client = Client(*await asyncio.open_unix_connection(host.runtime / "blue" / "http.sock"))
    host.clients.append(client)
    assert (await client.ask()).slot == "blue"
    await asyncio.sleep(3 * REST_AFTER)
    assert len(host.blue.server.server_state.connections) == 1
    assert resting(host.blue) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("is_received", [False, True])
async def test_the_keep_alive_time_ends_a_rest(host: Host, is_received: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one in which a request has begun."""
    clients = [await rested_client(host) for _ in range(3)]
    if is_received:
        host.cut_over()
    slot = host.green if is_received else host.blue
    await until(lambda: resting(slot) == 3, "the rest")
    idle = slot.server.idle
    monkeypatch.setattr(idle, "_keep_alive", KEEP_ALIVE)
    idle.pass_time()
    assert resting(slot) == 3, "they are idle for less than that"
    for connection in idle:
        connection.idle_since -= KEEP_ALIVE
    clients[0].send(GET)  # at once: nothing is in its write buffer
    monkeypatch.setattr(idle, "_next_look", 0.0)
    idle.pass_time()
    for client in clients[1:]:
        assert await client.rest() == b""
    assert (await clients[0].reply()).slot == slot.app.slot
    await until(lambda: resting(slot) == 1, "the rest")
    [connection] = idle
    connection.idle_since -= KEEP_ALIVE
    monkeypatch.setattr(idle, "_next_look", 0.0)
    assert await clients[0].rest() == b"", "the server looks by itself"


@pytest.mark.anyio
@pytest.mark.parametrize("settings", [{"max_connections": 4, "max_connections_per_address": 4}], indirect=True)
async def test_connections_at_rest_count_and_make_room(host: Host) -> None:
    """For the connections that may be open in all; those idle for longest are closed for another address."""
    clients = [await rested_client(host) for _ in range(4)]
    refused = await host.client(accepted=False)
    assert (await refused.reply()).status == 503
    assert host.blue.server.clients.admits("192.0.2.1")
    for client in clients:
        assert await client.rest() == b""
    assert not host.blue.connections


@pytest.mark.anyio
async def test_connections_of_a_candidate_without_a_receiver_go_to_the_live_slot(host: Host) -> None:
    """Such as those of an earlier generation, when the candidate's process has ended."""
    client = await rested_client(host)
    [connection] = host.blue.server.idle
    connection.side = "candidate"
    (host.runtime / "blue/handoff.sock").unlink()
    (host.runtime / "canary").write_text(json.dumps({"slot": "blue", "weight": 100}))
    host.cut_over()
    await until(lambda: host.green.ledger.adopted == 1, "the move")
    assert (await client.ask()).slot == "green"


@pytest.mark.anyio
async def test_a_worker_that_leaves_stores_its_connections_at_rest(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no process receives them; as often as it has to try."""
    client = await rested_client(host)
    stored: list[socket.socket] = []
    attempts = iter([Outcome.TRY_AGAIN] * 3)

    def store(connection: socket.socket) -> Outcome:
        if outcome := next(attempts, None):
            return outcome
        stored.append(connection.dup())
        return Outcome.SENT

    monkeypatch.setattr(host.blue.supervisor, "store", store)
    await host.blue.leave()
    assert len(stored) == 1
    assert resting(host.blue) == 0
    host.green.ledger.adopted += 1  # the test receives in green's place
    with stored[0] as connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (await client.reply()).status == 200


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
@pytest.mark.parametrize("settings", [{"drain": 0}], indirect=True)
async def test_a_worker_that_is_cut_passes_its_idle_connections_on(
    host: Host, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, although a slice has room for one message; a request in flight is cut."""
    monkeypatch.setattr(slices, "_SLICE", 0.0)
    clients = [await host.client() for _ in range(3 * BUNDLE)]
    busy = await host.client()
    busy.send(SLOW)
    await until(lambda: resting(host.blue) == len(clients) and host.blue.app.running, "the rest")
    host.go_live("green")
    await host.blue.leave(number)
    await until(lambda: host.green.ledger.adopted == len(clients), "the move")
    for client in clients:
        assert (await client.ask()).slot == "green"
    assert await busy.rest() == b""


@pytest.mark.anyio
async def test_empty_lines_do_not_prolong_the_keep_alive_time(host: Host) -> None:
    """They are no request, although they end a rest."""
    client = await rested_client(host)
    [before] = host.blue.server.idle
    client.send(b"\r\n")
    await until(lambda: not resting(host.blue), "the end of the rest")
    await until(lambda: resting(host.blue), "the rest")
    [after] = host.blue.server.idle
    assert after is not before
    assert after.idle_since == before.idle_since
    assert (await client.ask()).slot == "blue"


@pytest.mark.anyio
async def test_connections_that_end_together_do_not_hold_up_others(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a switch have been idle since then: some are closed at each look, until none is left."""
    monkeypatch.setattr(idle_module, "_ENDED_AT_ONCE", 2)
    for _ in range(5):
        await host.client()
    await until(lambda: resting(host.blue) == 5, "the rest")
    idle = host.blue.server.idle
    for connection in idle:
        connection.idle_since -= 1000
    monkeypatch.setattr(idle, "_next_look", 0.0)
    for left in (3, 1, 0):
        idle.pass_time()
        assert len(idle) == left


@pytest.mark.anyio
async def test_a_connection_that_ended_is_in_no_bundle(host: Host) -> None:
    """Nor one that was woken, while those before it were passed on."""
    for _ in range(BUNDLE + 3):
        await host.client()
    await until(lambda: resting(host.blue) == BUNDLE + 3, "the rest")
    idle = host.blue.server.idle
    bundles, last = idle.bundles(), list(idle)[-2:]
    next(bundles)
    last[0].give_up()
    idle.remove(last[1])
    host.blue.server.resume(last[1])
    [bundle] = bundles
    assert len(bundle._connections) == 1


ACTIONS = st.one_of(
    st.tuples(st.sampled_from(["ask", "send", "begin", "leave", "reset"]), st.integers(0, CLIENTS - 1)),
    st.tuples(st.sampled_from(["rest", "cut over", "tick"]), st.just(0)),
    st.tuples(st.just("iterate"), st.integers(1, 4)),
)


class Asking:
    """A client's part in a story: what it has sent, and how many answers it waits for."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.awaited = 0
        self._half = False

    def send(self) -> None:
        self.client.send(GET[7:] if self._half else GET)
        self._half = False
        self.awaited += 1

    def begin(self) -> None:
        if not self._half:
            self.client.send(GET[:7])
            self._half = True

    async def finish(self) -> None:
        if self._half:
            self.send()
        while self.awaited:
            assert (await self.client.reply()).status == 200
            self.awaited -= 1


async def _tell(story: list[tuple[str, int]], root: Path, runtime: Path) -> None:
    async with running_host(root, runtime) as host:
        clients: dict[int, Asking] = {}
        live = 0
        for action, number in story:
            if action in {"ask", "send", "begin", "leave", "reset"}:
                if number not in clients:
                    clients[number] = Asking(await host.client(accepted=False))
                asking = clients[number]
            if action == "send":
                asking.send()
            elif action == "begin":
                asking.begin()
            elif action == "ask":
                asking.send()
                await asking.finish()
            elif action == "leave":
                clients.pop(number).client.writer.close()
            elif action == "reset":
                clients.pop(number).client.abort()
            elif action == "rest":
                for slot in host.slots:
                    for connection in slot.connections:
                        if isinstance(connection, Connection) and connection.is_idle:
                            connection.rest()
            elif action == "cut over":
                live = 1 - live
                host.go_live(host.slots[live].app.slot)
            elif action == "tick":
                for slot in host.slots:
                    slot.tick()
            else:
                for _ in range(number):
                    await asyncio.sleep(0)
        for asking in clients.values():
            await asking.finish()
        for asking in clients.values():
            assert (await asking.client.ask()).status == 200
            asking.client.writer.close()
        await until(lambda: not any(slot.connections for slot in host.slots), "the end of all connections")
        for slot in host.slots:
            assert resting(slot) == 0
            assert slot.server.clients.admits("")
            assert not slot.server.clients._counts


@given(st.lists(ACTIONS, max_size=30))
@hypothesis_settings(max_examples=40, deadline=None)
def test_no_order_of_events_loses_a_request(story: list[tuple[str, int]]) -> None:
    """Connections rest, wake, move and end in any order: each request has one answer, and the accounts add up."""
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as runtime:
        asyncio.run(_tell(story, Path(root), Path(runtime)))
