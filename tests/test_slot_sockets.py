"""The handoff socket of a slot without workers, whose master passes waiting connections on."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.handover.fd_passing import SOCKET_NAME, Outcome, receive, send_bundle, send_fd
from service.handover.sockets import SlotSockets

Sender = Literal["sent", "sent with bytes", "bundle", "connected", "closed", "reset"]
SENDERS: tuple[Sender, ...] = ("sent", "sent with bytes", "bundle", "connected", "closed", "reset")


@contextmanager
def slot(directory: Path) -> Iterator[SlotSockets]:
    """The published sockets of a slot without workers."""
    generation = directory / "1"
    generation.mkdir(parents=True)
    sockets = SlotSockets.bind(directory, generation)
    for name in ("http.sock", "handoff.sock"):
        sockets.publish(name)
    with sockets.http, sockets.handoff:
        yield sockets


@settings(deadline=None, derandomize=True)
@given(senders=st.lists(st.sampled_from(SENDERS), max_size=12))
def test_no_sender_stops_the_forwarding(senders: list[Sender]) -> None:
    """A sender that has not sent yet, or has gone, is skipped: its send fails, and all others' connections arrive."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        old, new = (stack.enter_context(slot(Path(directory) / name)) for name in ("blue", "green"))
        sent: list[int] = []  # ports of the clients
        silent: list[socket.socket] = []
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for sender in senders:
            client = stack.enter_context(socket.create_connection(listener.getsockname()))
            accepted = stack.enter_context(listener.accept()[0])
            if sender.startswith("sent"):
                unread = b"GET" if sender == "sent with bytes" else b""
                assert send_fd(accepted.fileno(), old.slot_directory / "handoff.sock", unread) is Outcome.SENT
                sent.append(client.getsockname()[1])
                continue
            if sender == "bundle":
                note = (accepted.fileno(), b"")
                assert send_bundle([note], old.slot_directory / "handoff.sock") is Outcome.SENT
                sent.append(client.getsockname()[1])
                continue
            channel = stack.enter_context(socket.socket(socket.AF_UNIX))
            channel.connect(str(old.slot_directory / "handoff.sock"))
            if sender == "connected":
                silent.append(channel)
            elif sender == "closed":
                channel.shutdown(socket.SHUT_WR)
            else:
                channel.close()

        old.forward(new.slot_directory / "handoff.sock")

        arrived = []
        for _ in sent:
            with new.handoff.accept()[0] as channel:
                [received] = receive(channel)
            arrived.append(stack.enter_context(received.client).getpeername()[1])
        assert arrived == sent
        for channel in silent:
            try:
                socket.send_fds(channel, [b"c"], [listener.fileno()])
            except OSError:
                continue
            raise AssertionError("a connection was taken by a process that will not serve it")


@pytest.mark.parametrize("takes_bundles", [True, False])
def test_what_the_owner_cannot_take_goes_back(tmp_path: Path, takes_bundles: bool) -> None:
    """In one message, so that there is room for it; an owner of an earlier version gets as many as it can."""
    with ExitStack() as stack:
        old = stack.enter_context(slot(tmp_path / "blue"))
        owner = stack.enter_context(socket.socket(socket.AF_UNIX))
        owner.bind(str(tmp_path / (SOCKET_NAME if takes_bundles else "handoff.sock")))
        owner.listen(0 if takes_bundles else 1)  # the other attempt takes one, too
        (tmp_path / owner.getsockname()).rename(tmp_path / "owner.sock")
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(6)]
        accepted = [stack.enter_context(listener.accept()[0]) for _ in clients]
        for first in (0, 3):
            noted = [(connection.fileno(), b"") for connection in accepted[first : first + 3]]
            assert send_bundle(noted, old.slot_directory / "handoff.sock") is Outcome.SENT

        old.forward(tmp_path / "owner.sock")

        found = []
        for taker in (owner, old.handoff):
            taker.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    with taker.accept()[0] as channel:
                        received = receive(channel)
                    if received:
                        found.append([stack.enter_context(one.client).getpeername() for one in received])
        names = [client.getsockname() for client in clients]
        # Linux queues one message more than the backlog
        assert found == ([names[:3], names[3:]] if takes_bundles else [names[:1], names[3:], names[1:3]])
