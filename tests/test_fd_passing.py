"""Passing a client connection to another process by SCM_RIGHTS: nothing is lost, and no call blocks."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from service.handover import acceptor, fd_passing
from service.handover.fd_passing import BUNDLE, SOCKET_NAME, FdReceiver, Outcome, receive, send_bundle, send_fd

pytestmark = pytest.mark.anyio

TIMEOUT = 5.0  # seconds
BACKLOG = 8


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def socket_timeout() -> Iterator[None]:
    """Make a socket that blocks against expectation fail the test instead of hanging it."""
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
    """The connections that a receiver has adopted."""
    adopted: list[socket.socket] = []
    yield adopted
    for client in adopted:
        client.close()


@pytest.fixture
def pairs() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Makes TCP connections, each as the client's end and the server's end."""
    made: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))

    def pair() -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection(server.getsockname(), timeout=TIMEOUT)
        accepted, _ = server.accept()
        made.extend((client, accepted))
        return client, accepted

    yield pair
    for end in (*made, server):
        end.close()


Pairs = Callable[[], tuple[socket.socket, socket.socket]]


def append_to(
    adopted: list[socket.socket], unread: list[bytes] | None = None
) -> Callable[[socket.socket, bytes, bytes], None]:
    """Return a callback for FdReceiver that keeps each connection, and the bytes that came with it."""

    def adopt(client: socket.socket, data: bytes, _note: bytes) -> None:
        adopted.append(client)
        if unread is not None:
            unread.append(data)

    return adopt


def open_descriptors() -> int:
    """Return how many this process has; those that earlier tests left are closed before."""
    gc.collect()
    return psutil.Process().num_fds()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("size", [0, 1, 5 << 20])
async def test_unread_bytes_are_passed_with_the_connection(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs, size: int
) -> None:
    """Bytes that the sender has read arrive unchanged, whatever their size, and no descriptor is leaked."""
    data, received = bytes(range(256)) * (size // 256) + b"x" * (size % 256), list[bytes]()
    client, accepted = pairs()
    assert send_fd(accepted.fileno(), path, data) is Outcome.SENT
    accepted.close()
    before = open_descriptors()
    FdReceiver(listener, append_to(adopted, received)).accept()
    assert received == [data]
    assert open_descriptors() == before + 1  # the client connection
    adopted[0].send(b"hello")
    assert client.recv(100) == b"hello"


async def test_passed_connection_stays_open_in_both_directions(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """The receiver reads and writes a passed connection, and the client sees no end when the sender closes its copy."""
    receiver = FdReceiver(listener, append_to(adopted))
    receiver.start()
    client, accepted = pairs()
    assert send_fd(accepted.fileno(), path) is Outcome.SENT
    accepted.close()
    await until(lambda: adopted)
    assert adopted[0].getblocking() is False
    adopted[0].send(b"from the new owner")
    assert client.recv(100) == b"from the new owner"
    client.send(b"and back")
    assert await asyncio.get_running_loop().sock_recv(adopted[0], 100) == b"and back"
    client.setblocking(False)
    with pytest.raises(BlockingIOError):  # neither data nor end of file
        client.recv(1)
    receiver.stop()


async def test_bytes_in_the_kernel_stay_with_the_connection(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """Bytes sent before, during and after the handoff and not read by the sender reach the receiver in order."""
    client, accepted = pairs()
    client.send(b"before ")
    assert send_fd(accepted.fileno(), path) is Outcome.SENT
    client.send(b"during ")
    accepted.close()
    client.send(b"after")
    receiver = FdReceiver(listener, append_to(adopted))
    assert receiver.accept() == 1
    client.shutdown(socket.SHUT_WR)
    loop, read = asyncio.get_running_loop(), b""
    while part := await loop.sock_recv(adopted[0], 100):
        read += part
    assert read == b"before during after"


async def test_received_descriptor_is_not_inheritable(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """A program that a worker starts does not hold client connections open."""
    assert send_fd(pairs()[1].fileno(), path) is Outcome.SENT
    FdReceiver(listener, append_to(adopted)).accept()
    assert not os.get_inheritable(adopted[0].fileno())


async def test_connection_stays_with_the_sender_without_a_receiver(path: Path, pairs: Pairs) -> None:
    """Without a socket at the path, or with one that does not listen, the result is NO_RECEIVER."""
    client, accepted = pairs()
    assert send_fd(accepted.fileno(), path) is Outcome.NO_RECEIVER
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(path))
    assert send_fd(accepted.fileno(), path) is Outcome.NO_RECEIVER
    accepted.send(b"still here")
    assert client.recv(100) == b"still here"


async def test_full_backlog_never_blocks(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """With a full backlog a send returns TRY_AGAIN at once; each connection in the backlog is received once."""
    connections = [pairs() for _ in range(BACKLOG + 5)]
    socket.setdefaulttimeout(None)
    outcomes: list[Outcome] = []
    sender = threading.Thread(
        target=lambda: outcomes.extend(send_fd(accepted.fileno(), path) for _, accepted in connections), daemon=True
    )
    sender.start()
    sender.join(TIMEOUT)
    assert not sender.is_alive()
    sent = outcomes.count(Outcome.SENT)
    assert sent == BACKLOG + 1  # Linux queues one connection more than the backlog
    assert outcomes == [Outcome.SENT] * sent + [Outcome.TRY_AGAIN] * (len(connections) - sent)
    receiver = FdReceiver(listener, append_to(adopted))
    assert receiver.accept() == sent
    assert send_fd(connections[-1][1].fileno(), path) is Outcome.SENT
    assert receiver.accept() == 1
    client, accepted = connections[-2]
    accepted.send(b"still here")
    assert client.recv(100) == b"still here"
    assert len(adopted) == sent + 1


async def test_sender_that_has_not_sent_does_not_block_others(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """While one sender has connected and not sent, the next is served; the first may still send later."""
    receiver = FdReceiver(listener, append_to(adopted))
    receiver.start()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        client, accepted = pairs()
        assert send_fd(accepted.fileno(), path) is Outcome.SENT
        await until(lambda: adopted)
        adopted[0].send(b"hello")
        assert client.recv(5) == b"hello"
        other, late = pairs()
        socket.send_fds(silent, [b"c"], [late.fileno()])
        await until(lambda: len(adopted) == 2)
        adopted[1].send(b"late")
        assert other.recv(4) == b"late"
    receiver.stop()


async def test_sender_that_does_not_send_times_out(
    path: Path, listener: socket.socket, adopted: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver closes the channel of a sender that has sent nothing within the timeout, and adopts nothing."""
    monkeypatch.setattr(fd_passing, "_SEND_TIMEOUT", 0.02)
    receiver = FdReceiver(listener, append_to(adopted))
    receiver.start()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.setblocking(False)
        silent.connect(str(path))
        async with asyncio.timeout(TIMEOUT):
            assert await asyncio.get_running_loop().sock_recv(silent, 1) == b""
    assert not adopted
    receiver.stop()


@pytest.mark.parametrize("data", [b"", b"c", b"GET / HTTP/1.1\r\n\r\n"])
async def test_message_without_a_descriptor_is_ignored(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs, data: bytes
) -> None:
    """A peer that sends no descriptor (a dead sender, another program) is closed, and the next sender is served."""
    receiver = FdReceiver(listener, append_to(adopted))
    with socket.socket(socket.AF_UNIX) as stray:
        stray.connect(str(path))
        stray.send(data)
    assert receiver.accept() == 1
    assert not adopted
    _, accepted = pairs()
    assert send_fd(accepted.fileno(), path) is Outcome.SENT
    assert receiver.accept() == 1
    assert len(adopted) == 1


async def test_sent_connection_survives_its_sender(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """A connection whose sender is killed after SENT waits in the kernel until it is received."""
    client, accepted = pairs()
    script = (
        "import os, sys; from pathlib import Path; from service.handover.fd_passing import Outcome, send_fd;"
        "assert send_fd(int(sys.argv[1]), Path(sys.argv[2])) is Outcome.SENT; os.kill(os.getpid(), 9)"
    )
    sender = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(accepted.fileno()), str(path)],
        pass_fds=[accepted.fileno()], check=False, timeout=20, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert sender.returncode == -9
    accepted.close()
    assert FdReceiver(listener, append_to(adopted)).accept() == 1
    adopted[0].send(b"alive")
    assert client.recv(5) == b"alive"


async def test_stop_receives_the_backlog_first(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """A receiver that stops adopts every connection that was sent before, and none after."""
    receiver = FdReceiver(listener, append_to(adopted))
    receiver.start()
    connections = [pairs() for _ in range(BACKLOG)]
    assert {send_fd(accepted.fileno(), path) for _, accepted in connections} == {Outcome.SENT}
    receiver.stop()
    assert len(adopted) == BACKLOG
    _, accepted = pairs()
    assert send_fd(accepted.fileno(), path) is Outcome.SENT
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(adopted) == BACKLOG


async def test_workers_share_one_socket(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """Of two workers that watch the same socket exactly one adopts each connection."""
    receivers = [FdReceiver(listener, append_to(adopted)), FdReceiver(listener.dup(), append_to(adopted))]
    for receiver in receivers:
        receiver.start()
    connections = [pairs() for _ in range(BACKLOG)]
    for _, accepted in connections:
        assert send_fd(accepted.fileno(), path) is Outcome.SENT
    await until(lambda: len(adopted) >= BACKLOG)
    for receiver in receivers:
        receiver.stop()
        receiver._listener.close()
    assert len({client.getpeername() for client in adopted}) == len(adopted) == BACKLOG


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Let this process open so many descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
    limit = max(used) + 1 + count
    fillers = [os.dup(0) for _ in range(limit - count - len(used) + 1)]  # the listing itself used one
    while max(fillers, default=0) >= limit - count:
        os.close(fillers.pop())
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


@pytest.mark.parametrize("count", range(4))
def test_free_descriptors(count: int) -> None:
    """The tests below leave as many as they say."""
    opened = []
    with free_descriptors(count):
        try:
            for _ in range(10):
                opened.append(os.dup(0))  # noqa: PERF401
        except OSError:
            pass
    for descriptor in opened:
        os.close(descriptor)
    assert len(opened) == count


@pytest.mark.parametrize("free", range(6))
@pytest.mark.parametrize("unread", [b"", b"GET /"])
async def test_no_connection_is_lost_for_lack_of_descriptors(
    path: Path,
    listener: socket.socket,
    adopted: list[socket.socket],
    pairs: Pairs,
    caplog: pytest.LogCaptureFixture,
    free: int,
    unread: bytes,
) -> None:
    """Where too few are left, the connection stays with its sender or in the backlog, and is received later."""
    client, accepted = pairs()
    received: list[bytes] = []
    receiver = FdReceiver(listener, append_to(adopted, received))
    with free_descriptors(free):
        outcome = send_fd(accepted.fileno(), path, unread)
        if outcome is Outcome.SENT:
            receiver.accept()
    if outcome is not Outcome.SENT:
        assert outcome is Outcome.TRY_AGAIN
        assert send_fd(accepted.fileno(), path, unread) is Outcome.SENT
    while not adopted:
        assert receiver.accept()
    assert received == [unread]
    assert "is lost" not in caplog.text
    adopted[0].send(b"hello")
    assert client.recv(5) == b"hello"


async def test_receiver_without_descriptors_pauses(
    path: Path,
    listener: socket.socket,
    adopted: list[socket.socket],
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It logs that, and tries again after a pause: the event loop does not spin meanwhile."""
    monkeypatch.setattr(acceptor, "_PAUSE", 0.1)
    receiver = FdReceiver(listener, append_to(adopted))
    receiver.start()
    _, accepted = pairs()
    assert send_fd(accepted.fileno(), path) is Outcome.SENT
    began = time.monotonic()
    with free_descriptors(0):
        for _ in range(20):
            await asyncio.sleep(0.002)
    attempts = (time.monotonic() - began) / 0.1 + 1
    assert not adopted
    assert 1 <= caplog.text.count("cannot accept: [Errno 24] Too many open files") <= attempts
    await until(lambda: adopted)
    receiver.stop()


@pytest.mark.parametrize(("free", "unread"), [(1, b""), (1, b"GET /"), (2, b"GET /")])
async def test_connection_that_the_kernel_discards_is_reported(
    path: Path,
    listener: socket.socket,
    adopted: list[socket.socket],
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free: int,
    unread: bytes,
) -> None:
    """If the last descriptor is taken meanwhile, its client is disconnected, and no part of it is adopted."""
    monkeypatch.setattr(acceptor, "require", lambda *_: None)
    client, accepted = pairs()
    assert send_fd(accepted.fileno(), path, unread) is Outcome.SENT
    accepted.close()
    before = open_descriptors()
    with free_descriptors(free):
        assert FdReceiver(listener, append_to(adopted)).accept() == 1
    assert not adopted
    assert open_descriptors() == before
    assert caplog.text.count("a connection that was handed over is lost") == 1
    assert client.recv(5) == b""


def _pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def _listening() -> int:
    return socket.create_server(("127.0.0.1", 0)).detach()


def _datagrams() -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()


@pytest.mark.parametrize("make", [_pipe, _listening, _datagrams, lambda: os.open("/", os.O_RDONLY)])
@pytest.mark.parametrize("position", [0, 1])
async def test_what_is_no_connection_is_closed(
    path: Path,
    listener: socket.socket,
    adopted: list[socket.socket],
    pairs: Pairs,
    make: Callable[[], int],
    position: int,
) -> None:
    """Neither in place of the connection nor of the bytes that were read from it; and the receiver goes on."""
    receiver = FdReceiver(listener, append_to(adopted))
    before = open_descriptors()
    _, accepted = pairs()
    garbage = make()
    with socket.socket(socket.AF_UNIX) as sender:
        sender.connect(str(path))
        socket.send_fds(sender, [b"c"], [garbage] if position == 0 else [accepted.fileno(), garbage])
        os.close(garbage)
        receiver.accept()
    assert not adopted
    assert open_descriptors() == before + 2
    assert send_fd(accepted.fileno(), path) is Outcome.SENT
    receiver.accept()
    assert len(adopted) == 1


def test_another_user_hands_nothing_over(
    path: Path, listener: socket.socket, adopted: list[socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel tells who has connected; what another user sends is not looked at."""
    path.chmod(0o777)
    for directory in path.parents:
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o711)
    script = (
        "import os, socket, sys; os.setuid(65534); sender = socket.socket(socket.AF_UNIX); sender.connect(sys.argv[1]);"
        "own = socket.socketpair()[0]; socket.send_fds(sender, [b'c'], [own.fileno()])"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    FdReceiver(listener, append_to(adopted)).accept()
    assert not adopted
    assert "user 65534" in caplog.text


# bundles


@pytest.fixture
def bundles(path: Path) -> Iterator[socket.socket]:
    """The listener of a receiver that takes bundles, published at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path.parent / SOCKET_NAME))
        (path.parent / SOCKET_NAME).rename(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        yield listener


@pytest.mark.parametrize("count", [1, 2, BUNDLE])
async def test_a_bundle_arrives_in_one_piece(
    path: Path, bundles: socket.socket, adopted: list[socket.socket], pairs: Pairs, count: int
) -> None:
    """Each connection has its own note, what clients have sent stays with them, and no descriptor is leaked."""
    connections = [pairs() for _ in range(count)]
    for number, (client, _) in enumerate(connections):
        client.send(b"%d" % number)
    noted = [(accepted.fileno(), b"note %d" % number) for number, (_, accepted) in enumerate(connections)]
    assert send_bundle(noted, path) is Outcome.SENT
    before, notes = open_descriptors(), list[bytes]()

    def adopt(client: socket.socket, unread: bytes, note: bytes) -> None:
        assert unread == b""
        adopted.append(client)
        notes.append(note)

    assert FdReceiver(bundles, adopt).accept() == 1
    assert open_descriptors() == before + count
    assert notes == [note for _, note in noted]
    for number, received in enumerate(adopted):
        assert received.getblocking() is False
        assert not os.get_inheritable(received.fileno())
        assert received.recv(100) == b"%d" % number


async def test_a_receiver_of_an_earlier_version_gets_no_bundle(
    path: Path, listener: socket.socket, adopted: list[socket.socket], pairs: Pairs
) -> None:
    """It would take the first two descriptors, and close the rest: nothing is sent, and it takes the next sender."""
    _, accepted = pairs()
    receiver = FdReceiver(listener, append_to(adopted))
    assert send_bundle([(accepted.fileno(), b"")], path) is Outcome.ONE_BY_ONE
    assert receiver.accept() == 1
    assert not adopted
    assert send_fd(accepted.fileno(), path) is Outcome.SENT
    assert receiver.accept() == 1
    assert len(adopted) == 1


async def test_a_bundle_stays_with_its_sender_without_a_receiver(path: Path, pairs: Pairs) -> None:
    """Or with one whose backlog is full."""
    noted = [(pairs()[1].fileno(), b"")]
    assert send_bundle(noted, path) is Outcome.NO_RECEIVER
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(str(path.parent / SOCKET_NAME))
        full.listen(0)
        (path.parent / SOCKET_NAME).rename(path)
        assert send_bundle(noted, path) is Outcome.SENT  # Linux queues one connection more than the backlog
        assert send_bundle(noted, path) is Outcome.TRY_AGAIN


async def test_a_bundle_waits_for_free_descriptors(
    path: Path,
    bundles: socket.socket,
    adopted: list[socket.socket],
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A receiver with too few leaves it in the channel, expects it until there are enough, and does not spin."""
    monkeypatch.setattr(fd_passing, "_ROOM_PAUSE", 0.1)
    receiver = FdReceiver(bundles, append_to(adopted))
    connections = [pairs() for _ in range(BUNDLE)]
    assert send_bundle([(accepted.fileno(), b"") for _, accepted in connections], path) is Outcome.SENT
    for _, accepted in connections:
        accepted.close()
    began = time.monotonic()
    other, other_end = pairs()
    with free_descriptors(BUNDLE // 2):
        assert send_bundle([(other_end.fileno(), b"")], path) is Outcome.SENT
        assert receiver.accept() == 1, "another worker may take the next one"
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert receiver.is_expecting
    assert not adopted
    assert 1 <= caplog.text.count("cannot receive connections") <= (time.monotonic() - began) / 0.1 + 1
    await until(lambda: len(adopted) == BUNDLE)
    assert not receiver.is_expecting
    assert receiver.accept() == 1
    adopted[-1].send(b"other")
    assert other.recv(5) == b"other"
    connections[-1][0].send(b"hello")
    assert adopted[BUNDLE - 1].recv(5) == b"hello"


async def test_of_a_bundle_the_connections_alone_are_adopted(
    path: Path, bundles: socket.socket, adopted: list[socket.socket], pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    """What is none is closed and reported; of what the kernel discards the rest is adopted."""
    _, accepted = pairs()
    garbage = _pipe()
    assert send_bundle([(garbage, b"first"), (accepted.fileno(), b"second")], path) is Outcome.SENT
    os.close(garbage)
    before = open_descriptors()
    with bundles.accept()[0] as channel:
        [received] = receive(channel)
    adopted.append(received.client)
    assert received.note == b"second"
    assert open_descriptors() == before + 1
    assert "is no client connection" in caplog.text


async def test_what_fits_of_a_bundle_is_adopted(
    path: Path,
    bundles: socket.socket,
    adopted: list[socket.socket],
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the last descriptors are taken while it is received: the kernel discards the others, which is logged."""
    monkeypatch.setattr(fd_passing, "require", lambda *_: None)
    connections = [pairs() for _ in range(4)]
    assert send_bundle([(accepted.fileno(), b"%d" % accepted.fileno()) for _, accepted in connections], path)
    receiver = FdReceiver(bundles, append_to(adopted))
    with free_descriptors(3):  # one for the channel
        receiver.accept()
    assert len(adopted) == 2
    assert "is lost" in caplog.text
    for (client, _), received in zip(connections, adopted, strict=False):
        received.send(b"hello")
        assert client.recv(5) == b"hello"
