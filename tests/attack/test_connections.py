"""Clients that attack with connections and bytes of HTTP: the others notice nothing, and the worker goes on."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack

import pytest

from tests.attack.assault import ATTACKER, CONNECTIONS
from tests.attack.bystanders import (
    Bystanders,
    Report,
    assert_nothing_is_lost_in_rollouts,
    assert_nothing_is_noticed,
)
from tests.box import Box

pytestmark = pytest.mark.alone

GROWTH = 96 << 20  # bytes: of 64 attacking connections each may make the worker hold 320 KiB, and each request 32 KiB


@pytest.mark.parametrize("name", CONNECTIONS)
def test_others_notice_nothing(attacked: Box, clients: Bystanders, idle: Report, name: str) -> None:
    """Beside the attack the others are answered as fast as without, and the worker's memory stays within its bounds."""
    assert_nothing_is_noticed(attacked, clients, idle, CONNECTIONS[name], growth=GROWTH)


@pytest.mark.long
@pytest.mark.parametrize("name", CONNECTIONS)
def test_others_lose_nothing_in_rollouts(attacked: Box, name: str) -> None:
    """Nor do the attacking connections move a rollout: it ends as without them, and nobody else loses a request."""
    assert_nothing_is_lost_in_rollouts(attacked, CONNECTIONS[name], is_work=False)


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
