"""Clients that attack with connections and bytes of HTTP: the others notice nothing, and the worker goes on."""

from __future__ import annotations

import itertools
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.attack.bystanders import ATTEMPTS, Report, bystanders, harm
from tests.box import Box, live_host

pytestmark = pytest.mark.alone

SECONDS = 2.0  # that an attack lasts
ATTACKER = "127.0.0.2"
ONE_ADDRESS = 200  # connections
GROWTH = 96 << 20  # bytes: of 64 attacking connections each may make the worker hold 320 KiB, and each request 32 KiB

SMALL = b"GET /healthz HTTP/1.1\r\n\r\n"
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UPLOAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


CHANCE = random.Random(7)
GARBAGE = [
    CHANCE.choice([b"GET / HTTP/1.1\r\n", CHUNKED, b"", b"PUT ", b"\r\n" * 9])
    + CHANCE.randbytes(CHANCE.randrange(2000))
    for _ in range(500)
]


def pieces(head: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    """An attack that sends `head` and then `piece` again and again."""

    def attack() -> Iterator[bytes]:
        yield head
        while True:
            yield piece

    return attack


def slowly(head: bytes, pause: float) -> Callable[[], Iterator[bytes]]:
    """An attack that sends `head` and then a byte now and then."""

    def attack() -> Iterator[bytes]:
        yield head
        while True:
            time.sleep(pause)
            yield b"x"

    return attack


def garbage() -> Iterator[bytes]:
    """Bytes that begin like HTTP, and go on at random."""
    return itertools.cycle(random.sample(GARBAGE, len(GARBAGE)))


ATTACKS: dict[str, tuple[int, Callable[[], Iterator[bytes]]]] = {
    "pipelined requests": (8, pieces(b"", SMALL * 2000)),
    "one pipeline": (1, pieces(b"", SMALL * 2000)),
    "pipelined refusals": (8, pieces(b"", b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)),
    "endless headers": (32, pieces(b"GET / HTTP/1.1\r\n", b"a: " + b"b" * 60_000 + b"\r\n")),
    "endless names": (32, pieces(b"GET / HTTP/1.1\r\n", b"b" * 60_000)),
    "endless lines": (8, pieces(b"", b"\r\n" * 30_000)),
    "tiny chunks": (8, pieces(CHUNKED, b"1\r\na\r\n" * 10_000)),
    "endless extensions": (8, pieces(CHUNKED + b"1;", b"a" * 60_000)),
    "endless trailers": (8, pieces(CHUNKED + b"0\r\n", b"a: b\r\n" * 10_000)),
    "slow heads": (150, slowly(b"GET / HT", 0.2)),
    "slow bodies": (150, slowly(UPLOAD, 0.2)),
    "garbage": (8, garbage),
    "upgrades": (8, pieces(b"", b"GET /healthz HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n" * 1000)),
}


@pytest.fixture(scope="module")
def attacked(checkpoints: dict[str, object]) -> Iterator[Box]:
    """A host with one live slot, and with few connections for one address."""
    with live_host(checkpoints, "dummy") as box:  # type: ignore[arg-type]
        box.configure(threads=1, max_connections=300, max_connections_per_address=ONE_ADDRESS, keep_alive=600)
        box.glmctl("reload")
        yield box


@pytest.fixture(scope="module")
def idle(attacked: Box) -> Report:
    """What well-behaved clients notice without an attack."""
    with bystanders(attacked) as report:
        time.sleep(2 * SECONDS)
    return report


def assault(
    box: Box,
    connections: int,
    attack: Callable[[], Iterator[bytes]],
    seconds: float = SECONDS,
    stop: threading.Event | None = None,
) -> None:
    """Attack by that many connections at once; one that is closed is made again."""
    port = int(box.listen.split(":")[1])
    deadline = time.monotonic() + seconds

    def is_over() -> bool:
        return time.monotonic() > deadline or (stop is not None and stop.is_set())

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)  # an attacker has a machine of his own
        while not is_over():
            with suppress(OSError), socket.socket() as client:
                client.bind((ATTACKER, 0))
                client.settimeout(0.5)
                client.connect(("127.0.0.1", port))
                for piece in attack():
                    client.sendall(piece)
                    if is_over():
                        break
            time.sleep(0.02)

    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("name", ATTACKS)
def test_others_notice_nothing(attacked: Box, idle: Report, name: str) -> None:
    """Beside the attack the others are answered as fast as without, and the worker's memory stays within its bounds."""
    connections, attack = ATTACKS[name]
    [before] = attacked.generation("blue").alive_workers
    for _ in range(ATTEMPTS):
        with bystanders(attacked) as report:
            assault(attacked, connections, attack)
        found = harm(idle, report, growth=GROWTH)
        print(name, report)
        if not found:
            break
    assert not found
    [after] = attacked.generation("blue").alive_workers
    assert after.pid == before.pid


def ask(client: socket.socket) -> str:
    """Ask on a kept connection; returns the status line, and the slot that answered."""
    client.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = ""
    while not answer.endswith(("}", "later.")) and (piece := client.recv(65536)):
        answer += piece.decode()
    found = re.search(r"x-slot: (\w+)", answer)
    return f"{answer.partition(chr(13))[0]} {found[1] if found else ''}"


def test_a_cutover_at_the_limit_of_descriptors(box: Box) -> None:
    """Clients cannot take the last descriptors of a worker: all that it has are passed on, and are answered after."""
    box.drop_in("[Service]\nLimitNOFILE=400\n")  # 200 of them are for clients
    box.configure(threads=1, max_connections_per_address=190)  # the rest is for the controller
    box.glmctl("deploy", "1.1.0", "--bake", "0")
    port = int(box.listen.split(":")[1])
    with ExitStack() as stack:
        ends = [socket.create_connection(("127.0.0.1", port), 10, (ATTACKER, 0)) for _ in range(300)]
        clients = [stack.enter_context(end) for end in ends]
        answers = [ask(client) for client in clients]
        kept = [client for client, answer in zip(clients, answers, strict=True) if " 200 " in answer]
        assert {answer for answer in answers if " 200 " not in answer} == {"HTTP/1.1 503 Service Unavailable "}
        assert len(kept) == 190
        record = box.json("deploy", "1.0.0", "--bake", "0")
        assert {ask(client) for client in kept} == {"HTTP/1.1 200 OK blue"}
    assert record["receipt"]["lost"] == record["receipt"]["unadopted"] == 0


@pytest.mark.long
@pytest.mark.parametrize("how", ["canary", "cutovers", "swap"])
@pytest.mark.parametrize("name", ATTACKS)
def test_others_lose_nothing_during_a_rollout(attacked: Box, name: str, how: str) -> None:
    """Nor do the attacking connections move a rollout: it ends as without them, and nobody else loses a request."""
    connections, attack = ATTACKS[name]
    stop = threading.Event()
    attackers = threading.Thread(target=assault, args=(attacked, connections, attack, 120, stop))
    words = {
        "canary": [["1.1.0", "--canary", "50", "--step", "3s", "--bake", "2s"], ["1.0.0", "--bake", "0"]],
        "cutovers": [["1.1.0", "--bake", "0"], ["1.0.0", "--bake", "0"]],
        "swap": [["1.1.0", "--strategy", "swap", "--bake", "0"], ["1.0.0", "--bake", "0"]],
    }
    with bystanders(attacked, None) as report:
        attackers.start()
        try:
            records = [attacked.json("deploy", *options, "--drain", "30s") for options in words[how]]
        finally:
            stop.set()
            attackers.join()
    assert not report.failures
    assert [record["outcome"] for record in records] == ["done", "done"]
    assert [record["receipt"]["lost"] for record in records] == [0, 0]
