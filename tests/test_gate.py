"""The gate and the slot's sockets: ownership of client connections is derived from two paths alone."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.handover.sockets import SlotSockets
from service.routing.ownership import MAX_AGE, Gate, Look

Bind = Callable[[str, int], SlotSockets]


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime directory; its path is short, because that of a Unix socket has at most 107 bytes."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def bind(runtime: Path) -> Iterator[Bind]:
    """Binds the sockets of one generation of a slot."""
    bound: list[SlotSockets] = []

    def bind(slot: str, generation: int) -> SlotSockets:
        directory = runtime / slot / str(generation)
        directory.mkdir(parents=True)
        bound.append(SlotSockets.bind(runtime / slot, directory))
        return bound[-1]

    yield bind
    for sockets in bound:
        sockets.http.close()
        sockets.handoff.close()


@pytest.fixture
def gate_of(tmp_path: Path, runtime: Path) -> Callable[[SlotSockets], Gate]:
    return lambda sockets: Gate(tmp_path, runtime, sockets.handoff_inode, max_age=0)


class Clock:
    """A time that passes when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def go_live(root: Path, target: str) -> None:
    (root / "next").symlink_to(target)
    (root / "next").rename(root / "live")


def publish(sockets: SlotSockets) -> None:
    sockets.publish("http.sock")
    sockets.publish("handoff.sock")


def test_gate_is_open_for_the_slot_that_live_names(
    tmp_path: Path, runtime: Path, bind: Bind, gate_of: Callable[[SlotSockets], Gate]
) -> None:
    """One rename of `live` closes one gate and opens the other."""
    blue, green = bind("blue", 1), bind("green", 1)
    publish(blue)
    publish(green)
    gates = gate_of(blue), gate_of(green)
    for live, expected in (("blue", (True, False)), ("green", (False, True)), ("blue", (True, False))):
        go_live(tmp_path, live)
        assert (gates[0].is_open(), gates[1].is_open()) == expected
        assert gates[0].owner() == gates[1].owner() == runtime / live / "handoff.sock"


def test_gate_is_closed_until_the_generation_is_ready(
    tmp_path: Path, bind: Bind, gate_of: Callable[[SlotSockets], Gate]
) -> None:
    """The gate of the live slot stays closed until its generation has published the handoff socket."""
    sockets = bind("blue", 1)
    go_live(tmp_path, "blue")
    assert not gate_of(sockets).is_open()
    sockets.publish("http.sock")
    assert not gate_of(sockets).is_open()
    sockets.publish("handoff.sock")
    assert gate_of(sockets).is_open()


def test_next_generation_in_place_becomes_the_owner_by_rename(
    tmp_path: Path, bind: Bind, gate_of: Callable[[SlotSockets], Gate]
) -> None:
    """In place, one rename of handoff.sock opens the new gate and closes the old one; `live` does not change."""
    old, new = bind("blue", 1), bind("blue", 2)
    publish(old)
    go_live(tmp_path, "blue")
    assert (gate_of(old).is_open(), gate_of(new).is_open()) == (True, False)
    publish(new)
    assert (gate_of(old).is_open(), gate_of(new).is_open()) == (False, True)
    assert (old.are_published, new.are_published) == (False, True)


@pytest.mark.parametrize(
    "live", [None, "", "purple", "../blue", "blue/", "./blue", "BLUE", "blue\n", "/etc", "a file", "a directory"]
)
def test_live_that_names_no_slot_opens_no_gate(
    tmp_path: Path, bind: Bind, gate_of: Callable[[SlotSockets], Gate], live: str | None
) -> None:
    """Every gate is closed unless `live` is a symlink whose text is exactly blue or green."""
    sockets = bind("blue", 1)
    publish(sockets)
    if live == "a file":
        (tmp_path / "live").write_text("blue")
    elif live == "a directory":
        (tmp_path / "live").mkdir()
    elif live:
        (tmp_path / "live").symlink_to(live)
    assert gate_of(sockets).owner() is None
    assert not gate_of(sockets).is_open()


def test_another_socket_at_the_path_closes_the_gate(
    tmp_path: Path, runtime: Path, bind: Bind, gate_of: Callable[[SlotSockets], Gate]
) -> None:
    """The inode is compared, not the path: the gate is closed while another file is at the path."""
    sockets = bind("blue", 1)
    publish(sockets)
    go_live(tmp_path, "blue")
    path = runtime / "blue/handoff.sock"
    path.rename(runtime / "aside")
    assert not gate_of(sockets).is_open()
    path.write_text("no socket")
    assert not gate_of(sockets).is_open()
    (runtime / "aside").rename(path)
    assert gate_of(sockets).is_open()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the gate, which stands still."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_what_was_read_is_used_for_a_millisecond(
    tmp_path: Path, runtime: Path, bind: Bind, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many requests ask, the paths are read once in MAX_AGE; a rename by any program counts after it."""
    sockets = bind("blue", 1)
    publish(sockets)
    publish(bind("green", 1))
    go_live(tmp_path, "blue")
    gate, reads = Gate(tmp_path, runtime, sockets.handoff_inode), 0

    def look(self: Gate, look: Callable[[Gate], Look] = Gate.look) -> Look:
        nonlocal reads
        reads += 1
        return look(self)

    monkeypatch.setattr(Gate, "look", look)
    for _ in range(1000):
        assert gate.is_open()
        assert not gate.reads_heads
        assert gate.pick_side() == "live"
        clock.now += MAX_AGE / 100
    assert reads <= 11
    subprocess.run(["ln", "-sfn", "green", "live"], cwd=tmp_path, check=True)
    clock.now += MAX_AGE
    assert not gate.is_open()
    subprocess.run(["ln", "-s", "blue", "other"], cwd=tmp_path, check=True)
    subprocess.run(["mv", "-T", "other", "live"], cwd=tmp_path, check=True)
    clock.now += MAX_AGE
    assert gate.is_open()
    (runtime / "canary").write_text('{"slot": "green", "weight": 100}')
    clock.now += MAX_AGE
    assert gate.pick_side() == "candidate"
    assert gate.owner("candidate") == runtime / "green/handoff.sock"


def test_a_slow_look_is_not_used_for_longer(
    tmp_path: Path, runtime: Path, bind: Bind, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time counts from before the paths are read: a process that is suspended meanwhile reads them again."""
    sockets = bind("blue", 1)
    publish(sockets)
    gate = Gate(tmp_path, runtime, sockets.handoff_inode)
    go_live(tmp_path, "blue")

    def suspended(path: str, readlink: Callable[[str], str] = os.readlink) -> str:
        found = readlink(path)
        go_live(tmp_path, "green")
        clock.now += 10
        return found

    clock.now += MAX_AGE
    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", suspended)
        assert gate.is_open()
    assert not gate.is_open()


def test_published_sockets_listen_before_they_accept(runtime: Path, bind: Bind) -> None:
    """A client that connects before any worker accepts waits in the backlog; it is not refused."""
    sockets = bind("blue", 1)
    publish(sockets)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(runtime / "blue/http.sock"))
        client.sendall(b"hello")
        accepted, _ = sockets.http.accept()
        with accepted:
            assert accepted.recv(5) == b"hello"
    assert sockets.http.getblocking() is sockets.handoff.getblocking() is False


def test_path_leads_to_the_newest_published_socket(runtime: Path, bind: Bind) -> None:
    """Publishing replaces the path by one rename: a connection made after it reaches the newest generation."""
    for number in range(1, 6):
        sockets = bind("blue", number)
        publish(sockets)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(runtime / "blue/handoff.sock"))
            sockets.handoff.accept()[0].close()


def test_withdraw_removes_the_paths_of_its_own_sockets(
    tmp_path: Path, runtime: Path, bind: Bind, gate_of: Callable[[SlotSockets], Gate]
) -> None:
    """A master that ends removes the slot's paths, so that nothing is sent to it; a second call does nothing."""
    sockets = bind("blue", 1)
    publish(sockets)
    go_live(tmp_path, "blue")
    sockets.withdraw()
    sockets.withdraw()
    assert not (runtime / "blue/http.sock").exists()
    assert not (runtime / "blue/handoff.sock").exists()
    assert not sockets.are_published
    assert not gate_of(sockets).is_open()


def test_withdraw_keeps_the_paths_of_a_successor(
    tmp_path: Path, runtime: Path, bind: Bind, gate_of: Callable[[SlotSockets], Gate]
) -> None:
    """An old generation that ends late does not remove the paths of the generation that replaced it."""
    old, new = bind("blue", 1), bind("blue", 2)
    publish(old)
    publish(new)
    go_live(tmp_path, "blue")
    old.withdraw()
    assert new.are_published
    assert gate_of(new).is_open()
    assert (runtime / "blue/http.sock").is_socket()
