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

from service.handover import fd_passing as handoff
from service.handover.fd_passing import Outcome, Taker, give

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
def admitted() -> Iterator[list[socket.socket]]:
    """The connections that a taker let in."""
    admitted: list[socket.socket] = []
    yield admitted
    for client in admitted:
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


def to(admitted: list[socket.socket], held: list[bytes] | None = None) -> Callable[[socket.socket, bytes], None]:
    """Make what a taker calls: it keeps the connection, and the bytes that came with it."""

    def admit(client: socket.socket, data: bytes) -> None:
        admitted.append(client)
        if held is not None:
            held.append(data)

    return admit


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  (what is waited for sends no signal)
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("size", [0, 1, 5 << 20])
async def test_what_was_read_travels_with_the_connection(
    path: Path, listener: socket.socket, admitted: list[socket.socket], pairs: Pairs, size: int
) -> None:
    """To the byte, however much it is, and the giver does not wait for the taker."""
    data, came = bytes(range(256)) * (size // 256) + b"x" * (size % 256), list[bytes]()
    client, held = pairs()
    assert give(held.fileno(), path, data) is Outcome.GIVEN
    held.close()
    before = psutil.Process().num_fds()
    Taker(listener, to(admitted, came)).take()
    assert came == [data]
    assert psutil.Process().num_fds() == before + 1  # the client's
    admitted[0].send(b"hello")
    assert client.recv(100) == b"hello"


async def test_conversation_goes_on_in_the_taker(
    path: Path, listener: socket.socket, admitted: list[socket.socket], pairs: Pairs
) -> None:
    """A connection that was given still talks both ways, and the giver closing its copy is no end to the client."""
    taker = Taker(listener, to(admitted))
    taker.start()
    client, held = pairs()
    assert give(held.fileno(), path) is Outcome.GIVEN
    held.close()
    await until(lambda: admitted)
    assert admitted[0].getblocking() is False
    admitted[0].send(b"from the new owner")
    assert client.recv(100) == b"from the new owner"
    client.send(b"and back")
    assert await asyncio.get_running_loop().sock_recv(admitted[0], 100) == b"and back"
    client.setblocking(False)
    with pytest.raises(BlockingIOError):  # neither data nor an end
        client.recv(1)
    taker.stop()


async def test_bytes_that_nobody_read_travel_with_the_connection(
    path: Path, listener: socket.socket, admitted: list[socket.socket], pairs: Pairs
) -> None:
    """What the client sent before, during and after the handover is read by the new owner, in order."""
    client, held = pairs()
    client.send(b"before ")
    assert give(held.fileno(), path) is Outcome.GIVEN
    client.send(b"during ")
    held.close()
    client.send(b"after")
    taker = Taker(listener, to(admitted))
    assert taker.take() == 1
    client.shutdown(socket.SHUT_WR)
    loop, read = asyncio.get_running_loop(), b""
    while part := await loop.sock_recv(admitted[0], 100):
        read += part
    assert read == b"before during after"


async def test_no_child_inherits_what_was_taken(
    path: Path, listener: socket.socket, admitted: list[socket.socket], pairs: Pairs
) -> None:
    """A program that a worker starts holds no client connection open behind our back."""
    assert give(pairs()[1].fileno(), path) is Outcome.GIVEN
    Taker(listener, to(admitted)).take()
    assert not os.get_inheritable(admitted[0].fileno())


async def test_kept_when_nobody_is_there(path: Path, pairs: Pairs) -> None:
    """Without a socket at the path, or with one that nobody listens on, the connection stays with the giver."""
    client, held = pairs()
    assert give(held.fileno(), path) is Outcome.NOBODY
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert give(held.fileno(), path) is Outcome.NOBODY
    held.send(b"still ours")
    assert client.recv(100) == b"still ours"


async def test_full_backlog_never_blocks(
    path: Path, listener: socket.socket, admitted: list[socket.socket], pairs: Pairs
) -> None:
    """A taker that does not take makes the giver try again, at once; what fitted in is taken later, nothing twice."""
    connections = [pairs() for _ in range(BACKLOG + 5)]
    socket.setdefaulttimeout(None)
    outcomes: list[Outcome] = []
    giver = threading.Thread(
        target=lambda: outcomes.extend(give(held.fileno(), path) for _, held in connections), daemon=True
    )
    giver.start()
    giver.join(PATIENCE)
    assert not giver.is_alive()
    given = outcomes.count(Outcome.GIVEN)
    assert given == BACKLOG + 1  # Linux: a queue may exceed its length by one
    assert outcomes == [Outcome.GIVEN] * given + [Outcome.TRY_AGAIN] * (len(connections) - given)
    taker = Taker(listener, to(admitted))
    assert taker.take() == given
    assert give(connections[-1][1].fileno(), path) is Outcome.GIVEN
    assert taker.take() == 1
    client, kept = connections[-2]
    kept.send(b"still ours")
    assert client.recv(100) == b"still ours"
    assert len(admitted) == given + 1


async def test_silent_giver_does_not_hold_the_others(
    path: Path, listener: socket.socket, admitted: list[socket.socket], pairs: Pairs
) -> None:
    """A giver that connects and says nothing keeps neither the loop nor the giver behind it waiting."""
    taker = Taker(listener, to(admitted))
    taker.start()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        client, held = pairs()
        assert give(held.fileno(), path) is Outcome.GIVEN
        await until(lambda: admitted)
        admitted[0].send(b"hello")
        assert client.recv(5) == b"hello"
        # and it is not forgotten: it may still give
        other, late = pairs()
        socket.send_fds(silent, [b"c"], [late.fileno()])
        await until(lambda: len(admitted) == 2)
        admitted[1].send(b"late")
        assert other.recv(4) == b"late"
    taker.stop()


async def test_silent_giver_is_dropped(
    path: Path, listener: socket.socket, admitted: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its patience the taker closes on a giver that said nothing, and admits nobody."""
    monkeypatch.setattr(handoff, "_PATIENCE", 0.02)
    taker = Taker(listener, to(admitted))
    taker.start()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.setblocking(False)
        silent.connect(str(path))
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.get_running_loop().sock_recv(silent, 1) == b""
    assert not admitted
    taker.stop()


@pytest.mark.parametrize("words", [b"", b"c", b"GET / HTTP/1.1\r\n\r\n"])
async def test_giver_that_gives_nothing_admits_nobody(
    path: Path, listener: socket.socket, admitted: list[socket.socket], pairs: Pairs, words: bytes
) -> None:
    """Whoever connects without a descriptor (a dead giver, a stray client) is let go, and the next one is served."""
    taker = Taker(listener, to(admitted))
    with socket.socket(socket.AF_UNIX) as stray:
        stray.connect(str(path))
        stray.send(words)
    assert taker.take() == 1
    assert not admitted
    _, held = pairs()
    assert give(held.fileno(), path) is Outcome.GIVEN
    assert taker.take() == 1
    assert len(admitted) == 1


async def test_gift_outlives_its_giver(
    path: Path, listener: socket.socket, admitted: list[socket.socket], pairs: Pairs
) -> None:
    """A giver killed right after it gave has lost nothing: the connection waits in the kernel for its taker."""
    client, held = pairs()
    script = (
        "import os, sys; from pathlib import Path; from service.handover.fd_passing import Outcome, give;"
        "assert give(int(sys.argv[1]), Path(sys.argv[2])) is Outcome.GIVEN; os.kill(os.getpid(), 9)"
    )
    giver = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(held.fileno()), str(path)],
        pass_fds=[held.fileno()], check=False, timeout=20, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert giver.returncode == -9
    held.close()
    assert Taker(listener, to(admitted)).take() == 1
    admitted[0].send(b"alive")
    assert client.recv(5) == b"alive"


async def test_stopping_takes_what_already_waits(
    path: Path, listener: socket.socket, admitted: list[socket.socket], pairs: Pairs
) -> None:
    """A taker that leaves admits every connection that was given before, and none after."""
    taker = Taker(listener, to(admitted))
    taker.start()
    given = [pairs() for _ in range(BACKLOG)]
    assert {give(held.fileno(), path) for _, held in given} == {Outcome.GIVEN}
    taker.stop()
    assert len(admitted) == BACKLOG
    _, held = pairs()
    assert give(held.fileno(), path) is Outcome.GIVEN
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(admitted) == BACKLOG


async def test_siblings_share_one_socket(
    path: Path, listener: socket.socket, admitted: list[socket.socket], pairs: Pairs
) -> None:
    """Two workers that watch the same socket take each connection once between them."""
    takers = [Taker(listener, to(admitted)), Taker(listener.dup(), to(admitted))]
    for taker in takers:
        taker.start()
    given = [pairs() for _ in range(BACKLOG)]
    for _, held in given:
        assert give(held.fileno(), path) is Outcome.GIVEN
    await until(lambda: len(admitted) >= BACKLOG)
    for taker in takers:
        taker.stop()
        taker._listener.close()
    assert len({client.getpeername() for client in admitted}) == len(admitted) == BACKLOG


async def test_running_out_of_descriptors_is_survived(
    path: Path,
    listener: socket.socket,
    admitted: list[socket.socket],
    pairs: Pairs,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A taker that cannot accept says so and leaves the connection in the backlog, where it can be taken later."""
    taker = Taker(listener, to(admitted))
    client, held = pairs()
    assert give(held.fileno(), path) is Outcome.GIVEN

    class Exhausted:
        def accept(self) -> None:
            raise OSError(24, os.strerror(24))

    taker._listener = Exhausted()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        assert taker.take() == 0
    assert "Too many open files" in caplog.text
    taker._listener = listener
    assert taker.take() == 1
    admitted[0].send(b"hello")
    assert client.recv(5) == b"hello"
