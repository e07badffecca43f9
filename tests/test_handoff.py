"""Handing a connection over: a descriptor travels, the conversation goes on, and nobody ever waits."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from service.handover import fd_passing
from service.handover.fd_passing import FdReceiver, Outcome, send_fd

pytestmark = pytest.mark.anyio

PATIENCE = 5.0
BACKLOG = 8


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def nothing_waits_for_ever() -> Iterator[None]:
    """A socket that should not block and does becomes a failure instead of a test that hangs."""
    socket.setdefaulttimeout(1.0)
    yield
    socket.setdefaulttimeout(None)


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "handoff.sock"


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        yield listener


@pytest.fixture
def adopted() -> Iterator[list[socket.socket]]:
    """The connections that a receiver let in."""
    adopted: list[socket.socket] = []
    yield adopted
    for client in adopted:
        client.close()


@pytest.fixture
def pairs() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Makes TCP connections: the client's end, and the server's."""
    made: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))

    def pair() -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection(server.getsockname(), timeout=PATIENCE)
        held, _ = server.accept()
        made.extend((client, held))
        return client, held

    yield pair
    for one in (*made, server):
        one.close()


Pairs = Callable[[], tuple[socket.socket, socket.socket]]


def to(adopted: list[socket.socket], held: list[bytes] | None = None) -> Callable[[socket.socket, bytes], None]:
    """Make what a receiver calls: it keeps the connection, and the bytes that came with it."""

    def adopt(client: socket.socket, data: bytes) -> None:
        adopted.append(client)
        if held is not None:
            held.append(data)

    return adopt


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  (what is waited for sends no signal)
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("size", [0, 1, 5 << 20])
async def test_what_was_read_travels_with_the_connection(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs, size: int
) -> None:
    """To the byte, however much it is, and the sender does not wait for the receiver."""
    data, came = bytes(range(256)) * (size // 256) + b"x" * (size % 256), list[bytes]()
    client, held = pairs()
    assert send_fd(held.fileno(), path, data) is Outcome.SENT
    held.close()
    before = psutil.Process().num_fds()
    FdReceiver(listener, to(adopted, came)).accept()
    assert came == [data]
    assert psutil.Process().num_fds() == before + 1  # the client's
    adopted[0].send(b"hello")
    assert client.recv(100) == b"hello"


async def test_conversation_goes_on_in_the_taker(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """A connection that was given still talks both ways, and the sender closing its copy is no end to the client."""
    receiver = FdReceiver(listener, to(adopted))
    receiver.start()
    client, held = pairs()
    assert send_fd(held.fileno(), path) is Outcome.SENT
    held.close()
    await until(lambda: adopted)
    assert adopted[0].getblocking() is False
    adopted[0].send(b"from the new owner")
    assert client.recv(100) == b"from the new owner"
    client.send(b"and back")
    assert await asyncio.get_running_loop().sock_recv(adopted[0], 100) == b"and back"
    client.setblocking(False)
    with pytest.raises(BlockingIOError):  # neither data nor an end
        client.recv(1)
    receiver.stop()


async def test_bytes_that_nobody_read_travel_with_the_connection(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """What the client sent before, during and after the handover is read by the new owner, in order."""
    client, held = pairs()
    client.send(b"before ")
    assert send_fd(held.fileno(), path) is Outcome.SENT
    client.send(b"during ")
    held.close()
    client.send(b"after")
    receiver = FdReceiver(listener, to(adopted))
    assert receiver.accept() == 1
    client.shutdown(socket.SHUT_WR)
    loop, read = asyncio.get_running_loop(), b""
    while part := await loop.sock_recv(adopted[0], 100):
        read += part
    assert read == b"before during after"


async def test_no_child_inherits_what_was_taken(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """A program that a worker starts holds no client connection open behind our back."""
    assert send_fd(pairs()[1].fileno(), path) is Outcome.SENT
    FdReceiver(listener, to(adopted)).accept()
    assert not os.get_inheritable(adopted[0].fileno())


async def test_kept_when_nobody_is_there(path: Path, pairs: Pairs) -> None:
    """Without a socket at the path, or with one that nobody listens on, the connection stays with the sender."""
    client, held = pairs()
    assert send_fd(held.fileno(), path) is Outcome.NO_RECEIVER
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert send_fd(held.fileno(), path) is Outcome.NO_RECEIVER
    held.send(b"still ours")
    assert client.recv(100) == b"still ours"


async def test_full_backlog_never_blocks(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """With a full backlog a send returns TRY_AGAIN at once; what fitted in is received later, and nothing twice."""
    connections = [pairs() for _ in range(BACKLOG + 5)]
    socket.setdefaulttimeout(None)
    outcomes: list[Outcome] = []
    sender = threading.Thread(
        target=lambda: outcomes.extend(send_fd(held.fileno(), path) for _, held in connections), daemon=True
    )
    sender.start()
    sender.join(PATIENCE)
    assert not sender.is_alive()
    given = outcomes.count(Outcome.SENT)
    assert given == BACKLOG + 1  # Linux: a queue may exceed its length by one
    assert outcomes == [Outcome.SENT] * given + [Outcome.TRY_AGAIN] * (len(connections) - given)
    receiver = FdReceiver(listener, to(adopted))
    assert receiver.accept() == given
    assert send_fd(connections[-1][1].fileno(), path) is Outcome.SENT
    assert receiver.accept() == 1
    client, kept = connections[-2]
    kept.send(b"still ours")
    assert client.recv(100) == b"still ours"
    assert len(adopted) == given + 1


async def test_silent_giver_does_not_hold_the_others(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """A sender that connects and says nothing keeps neither the loop nor the sender behind it waiting."""
    receiver = FdReceiver(listener, to(adopted))
    receiver.start()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        client, held = pairs()
        assert send_fd(held.fileno(), path) is Outcome.SENT
        await until(lambda: adopted)
        adopted[0].send(b"hello")
        assert client.recv(5) == b"hello"
        # and it is not forgotten: it may still give
        other, late = pairs()
        socket.send_fds(silent, [b"c"], [late.fileno()])
        await until(lambda: len(adopted) == 2)
        adopted[1].send(b"late")
        assert other.recv(4) == b"late"
    receiver.stop()


async def test_silent_giver_is_dropped(
    path: Path, listener: socket.socket, adopted: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its patience the receiver closes on a sender that said nothing, and admits nobody."""
    monkeypatch.setattr(fd_passing, "_SEND_TIMEOUT", 0.02)
    receiver = FdReceiver(listener, to(adopted))
    receiver.start()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.setblocking(False)
        silent.connect(str(path))
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.get_running_loop().sock_recv(silent, 1) == b""
    assert not adopted
    receiver.stop()


@pytest.mark.parametrize("words", [b"", b"c", b"GET / HTTP/1.1\r\n\r\n"])
async def test_giver_that_gives_nothing_admits_nobody(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs, words: bytes
) -> None:
    """Whoever connects without a descriptor (a dead sender, a stray client) is let go, and the next one is served."""
    receiver = FdReceiver(listener, to(adopted))
    with socket.socket(socket.AF_UNIX) as stray:
        stray.connect(str(path))
        stray.send(words)
    assert receiver.accept() == 1
    assert not adopted
    _, held = pairs()
    assert send_fd(held.fileno(), path) is Outcome.SENT
    assert receiver.accept() == 1
    assert len(adopted) == 1


async def test_gift_outlives_its_giver(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """A sender killed right after it gave has lost nothing: the connection waits in the kernel for its receiver."""
    client, held = pairs()
    script = (
        "import os, sys; from pathlib import Path; from service.handover.fd_passing import Outcome, send_fd;"
        "assert send_fd(int(sys.argv[1]), Path(sys.argv[2])) is Outcome.SENT; os.kill(os.getpid(), 9)"
    )
    sender = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(held.fileno()), str(path)],
        pass_fds=[held.fileno()], check=False, timeout=20, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert sender.returncode == -9
    held.close()
    assert FdReceiver(listener, to(adopted)).accept() == 1
    adopted[0].send(b"alive")
    assert client.recv(5) == b"alive"


async def test_stopping_takes_what_already_waits(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """A receiver that leaves admits every connection that was given before, and none after."""
    receiver = FdReceiver(listener, to(adopted))
    receiver.start()
    given = [pairs() for _ in range(BACKLOG)]
    assert {send_fd(held.fileno(), path) for _, held in given} == {Outcome.SENT}
    receiver.stop()
    assert len(adopted) == BACKLOG
    _, held = pairs()
    assert send_fd(held.fileno(), path) is Outcome.SENT
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(adopted) == BACKLOG


async def test_siblings_share_one_socket(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """Two workers that watch the same socket take each connection once between them."""
    receivers = [FdReceiver(listener, to(adopted)), FdReceiver(listener.dup(), to(adopted))]
    for receiver in receivers:
        receiver.start()
    given = [pairs() for _ in range(BACKLOG)]
    for _, held in given:
        assert send_fd(held.fileno(), path) is Outcome.SENT
    await until(lambda: len(adopted) >= BACKLOG)
    for receiver in receivers:
        receiver.stop()
        receiver._listener.close()
    assert len({client.getpeername() for client in adopted}) == len(adopted) == BACKLOG


async def test_running_out_of_descriptors_is_survived(
    path: Path,
    listener: socket.socket,
    adopted: list[socket.socket],
    pairs: Pairs,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A receiver that cannot accept says so and leaves the connection in the backlog, where it can be taken later."""
    receiver = FdReceiver(listener, to(adopted))
    client, held = pairs()
    assert send_fd(held.fileno(), path) is Outcome.SENT

    class Exhausted:
        def accept(self) -> None:
            raise OSError(24, os.strerror(24))

    receiver._listener = Exhausted()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        assert receiver.accept() == 0
    assert "Too many open files" in caplog.text
    receiver._listener = listener
    assert receiver.accept() == 1
    adopted[0].send(b"hello")
    assert client.recv(5) == b"hello"
