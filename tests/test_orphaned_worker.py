"""Kill -9 of a Gunicorn master: its workers finish their requests within seconds and exit; clients stay connected."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from service.contract.generations import Generation, generations
from service.contract.worker_state import Ledger
from service.handover import server
from tests.box import Box, kill, wait_for
from tests.server_fixtures import GET, SLOW, Client, Host, running_host, until


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def host(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    async with running_host(tmp_path, tmp_path_factory.mktemp("run")) as host:
        host.blue.supervisor.stored = []
        yield host
        for client in host.blue.supervisor.stored:
            client.close()
        host.green.ledger.adopted += len(host.blue.supervisor.stored)  # the tests receive in green's place


@pytest.mark.anyio
async def test_connections_without_an_owner_are_stored(host: Host) -> None:
    """Idle connections are stored when the master is killed, and busy ones after their responses; none is closed."""
    idle, busy = await host.client(), await host.client()
    busy.send(SLOW)
    await until(lambda: host.blue.app.running, "the request")
    host.blue.supervisor.is_running = False
    await until(lambda: len(stored(host)) == 1, "the idle connection")
    host.blue.app.proceed.set()
    assert (await busy.reply()).slot == "blue"
    await host.blue.task
    assert len(stored(host)) == 2
    for client in (idle, busy):
        client.send(GET)
    for connection in stored(host):
        connection.setblocking(True)
        assert connection.recv(100) == GET
    assert host.blue.ledger == Ledger(accepted=1, completed=1, drained=1, handed_out=2)


@pytest.mark.anyio
async def test_a_client_that_never_pauses_does_not_keep_an_orphan(host: Host) -> None:
    """A busy keep-alive connection is stored between two requests, and closed there if it cannot be stored."""
    for stores in (True, False):
        if not stores:
            host.go_live("green")
            host.green.supervisor.stored = None
        slot = host.blue if stores else host.green
        client = await host.client()

        async def ask_on(client: Client = client) -> None:
            while True:
                await client.ask()

        asking = asyncio.create_task(ask_on())
        await until(lambda slot=slot: slot.ledger.completed > 10, "the requests")  # type: ignore[misc]
        slot.supervisor.is_running = False
        async with asyncio.timeout(server._ORPHAN_DRAIN / 2):
            await slot.task
        asking.cancel()
        assert (slot.ledger.cut, slot.ledger.handed_out) == (0, int(stores))
        await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.anyio
async def test_an_orphan_loses_no_connection_that_was_sent_to_it(host: Host) -> None:
    """An orphan withdraws the slot's sockets: what was sent to them before is stored, and nothing can be sent later."""
    host.cut_over()
    host.green.tick()
    client = await host.client()
    host.blue.supervisor.is_running = host.green.supervisor.is_running = True
    host.green.supervisor.stored = []
    host.go_live("blue")
    host.green.tick()  # sends the connection, which waits in blue's backlog now
    host.blue.supervisor.is_running = False
    await host.blue.task
    assert not (host.runtime / "blue/handoff.sock").exists()
    assert len(stored(host)) == 1
    client.send(GET)
    stored(host)[0].setblocking(True)
    assert stored(host)[0].recv(100) == GET


@pytest.mark.anyio
async def test_an_orphan_cuts_what_it_cannot_finish(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that takes longer than the bound is cut and counted, whatever the drain time is."""
    monkeypatch.setattr(server, "_ORPHAN_DRAIN", 0.2)
    client = await host.client()
    client.send(SLOW)
    await until(lambda: host.blue.app.running, "the request")
    host.blue.supervisor.is_running = False
    async with asyncio.timeout(2):
        await host.blue.task
    assert await client.rest() == b""
    assert host.blue.ledger == Ledger(accepted=1, failed=1, cut=1)
    host.blue.app.proceed.set()


def stored(host: Host) -> list[socket.socket]:
    assert host.blue.supervisor.stored is not None
    return host.blue.supervisor.stored


TAKE = """
import os, socket, sys
from service.process.descriptors import Descriptors

listening, client = socket.create_server(("127.0.0.1", 0)), socket.socketpair()[0]
for descriptor, kind in enumerate(sys.argv[1], start=3):
    os.dup2({"l": listening, "c": client}[kind].fileno(), descriptor)
names = {"l": "glm.socket", "c": "client"}
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(int(sys.argv[2] or len(sys.argv[1])))}
os.environ["LISTEN_FDNAMES"] = ":".join(names[kind] for kind in sys.argv[1])
found = Descriptors.take()
print(found.listeners, [one.fileno() for one in found.clients], os.environ["LISTEN_FDS"])
"""


@pytest.mark.parametrize(
    ("passed", "count", "found"),
    [
        ("l", "", "1 [] 1"),
        ("lcc", "", "1 [4, 5] 1"),
        ("cc", "", "0 [3, 4] 0"),
        (
            "lcc",
            "1",
            "1 [] 1",
        ),  # after USR2: Gunicorn's count, and the names of the first master
    ],
)
def test_stored_connections_are_told_from_listening_sockets(passed: str, count: str, found: str) -> None:
    """Gunicorn, which takes every descriptor for a listening socket, is left with those that listen."""
    said = subprocess.run([sys.executable, "-c", TAKE, passed, count], capture_output=True, text=True, timeout=30)
    assert said.stdout.strip() == found, said.stderr


def serving(box: Box) -> Generation:
    return box.generation("blue")


def reloaded(box: Box) -> Generation:
    assert box.systemctl("reload", "glm@blue.service").returncode == 0
    return box.generation("blue")


def candidate_that_loads(box: Box) -> Generation:
    hang_load(box, "green")
    box.systemctl("start", "--no-block", "glm@green.service")
    return await_load(box, "green", known=0)


def successor_that_loads(box: Box) -> Generation:
    hang_load(box, "blue")
    box.systemctl("reload", "--no-block", "glm@blue.service")
    return await_load(box, "blue", known=1)


@pytest.mark.parametrize("case", [serving, reloaded, candidate_that_loads, successor_that_loads])
def test_no_worker_outlives_its_master(box: Box, case: Callable[[Box], Generation]) -> None:
    """Whatever a generation does, its workers are gone soon after its master, and clients are answered."""
    generation = case(box)
    workers = [worker.pid for worker in generation.alive_workers]
    assert workers
    with keep_alive_client(box) as client:
        port = client_port(client)
        kill(generation.master)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 5, "the workers' end")
        assert client_port(client) == port
    assert box.get("/version").json()["version"] == "1.0.0"


def test_a_restart_of_the_unit_keeps_connections(box: Box) -> None:
    """`systemctl restart` of the live slot: a keep-alive client waits, and keeps its connection; a stop closes it."""
    with keep_alive_client(box) as client:
        port = client_port(client)
        for _ in range(2):
            assert box.systemctl("restart", "glm@blue.service").returncode == 0
            assert client_port(client) == port
    with socket.create_connection(("127.0.0.1", port_of(box)), timeout=30) as idle:
        wait_for(lambda: box.generation("blue").connections)
        assert box.systemctl("stop", "glm@blue.service").returncode == 0
        assert idle.recv(1) == b""


@pytest.mark.alone
def test_master_killed_under_load(box: Box, tmp_path: Path) -> None:
    """Clients wait at most 5 s longer than a start takes, and lose nothing but what outlasts the orphan's bound."""
    with box.load(tmp_path) as load, socket.create_connection(("127.0.0.1", port_of(box))) as endless:
        body = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 100000, "stream": true}'
        endless.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        endless.sendall(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        assert endless.recv(12) == b"HTTP/1.1 200"
        before = box.generation("blue").master
        kill(before)
        wait_for(lambda: box.show("glm@blue.service", "MainPID") not in {str(before), "0"}, 30)
        wait_for(lambda: box.show("glm@blue.service", "ActiveState") == "active", 60)
        microseconds = {
            name: int(box.show("glm@blue.service", f"{name}TimestampMonotonic"))
            for name in ("ExecMainStart", "ActiveEnter")
        }
        start = (microseconds["ActiveEnter"] - microseconds["ExecMainStart"]) / 1e6
        time.sleep(2)
    report = load.stop()
    assert report.lost == 0, report.losses
    assert report.longest_pause_ms / 1000 < start + 5, (report.longest_pause_ms, start)


def hang_load(box: Box, slot: str) -> None:
    """Point the slot to a release whose configuration is a pipe that is never written to."""
    file = box.host.root / "releases/1.1.0/model/config.json"
    file.unlink()
    os.mkfifo(file)
    box.slots.point(slot, "releases/1.1.0")


def await_load(box: Box, slot: str, *, known: int) -> Generation:
    found: list[Generation] = []

    def loads() -> bool:
        found[:] = [one for one in generations(box.host.runtime, slot)[known:] if one.alive_workers]
        return bool(found)

    wait_for(loads, what="the load")
    return found[0]


def keep_alive_client(box: Box) -> httpx.Client:
    """Return a client that keeps its connection for as long as a start may take."""
    limits = httpx.Limits(keepalive_expiry=None)
    return httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=60, limits=limits)


def client_port(client: httpx.Client) -> int:
    """Return the client's port, which tells one connection from another."""
    answer = client.get("/version")
    assert answer.status_code == 200
    return int(answer.extensions["network_stream"].get_extra_info("client_addr")[1])


def port_of(box: Box) -> int:
    return int(box.listen.rpartition(":")[2])
