"""The handoff socket of a slot without workers, whose master passes waiting connections on."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from service.handover.fd_passing import Outcome, receive, send_bundle, send_fd
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


def test_what_the_owner_cannot_take_goes_back(tmp_path: Path) -> None:
    """Each connection of a bundle: those that were sent are the owner's, the others wait in the slot's own backlog."""
    with ExitStack() as stack:
        old = stack.enter_context(slot(tmp_path / "blue"))
        owner = stack.enter_context(socket.socket(socket.AF_UNIX))
        owner.bind(str(tmp_path / "owner.sock"))
        owner.listen(1)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(5)]
        accepted = [stack.enter_context(listener.accept()[0]) for _ in clients]
        noted = [(connection.fileno(), b"") for connection in accepted]
        assert send_bundle(noted, old.slot_directory / "handoff.sock") is Outcome.SENT

        old.forward(tmp_path / "owner.sock")

        found = []
        for taker, count in ((owner, 2), (old.handoff, 3)):  # Linux queues one connection more than the backlog
            for _ in range(count):
                with taker.accept()[0] as channel:
                    [received] = receive(channel)
                found.append(stack.enter_context(received.client).getpeername())
        assert found == [client.getsockname() for client in clients]
