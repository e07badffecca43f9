"""A machine that holds one copy: the old version leaves, the new one loads, and clients wait instead of failing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.box import Box, kill, wait_for

IDLE = 30
SHORT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}


@pytest.fixture
def small_box(box: Box) -> Box:
    """A host on which 1.0.0 is live and two copies do not fit."""
    box.host.policy.parent.mkdir(parents=True, exist_ok=True)
    box.host.policy.write_text('[memory]\nlimit = "700MiB"\n')
    return box


class Crowd:
    """Clients that keep asking, each in its own way, and a pool that keeps its connections and says nothing."""

    def __init__(self, box: Box) -> None:
        host, port = box.listen.split(":")
        self._address = host, int(port)
        self.idle = [socket.create_connection(self._address, timeout=120) for _ in range(IDLE)]
        for client in self.idle:
            ask(client)
        self.statuses: list[tuple[int, str]] = []
        self.broken: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(kind,)) for kind in ("kept", "kept", "new", "chat")]
        for thread in self._threads:
            thread.start()

    def _run(self, kind: str) -> None:
        connection = HTTPConnection(*self._address, timeout=120)
        while not self._over.is_set():
            try:
                if kind == "chat":
                    body = json.dumps(SHORT)
                    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
                else:
                    connection.request("GET", "/version")
                answer = connection.getresponse()
                answer.read()
                if answer.getheader("connection") == "close":
                    self.broken.append(f"{kind}: told to close")
            except OSError as error:
                self.broken.append(f"{kind}: {error!r}")
                return
            self.statuses.append((answer.status, answer.getheader("x-model-version") or ""))
            if kind == "new":
                connection.close()
        connection.close()

    def end(self) -> None:
        """Stop, and see that every idle connection is still there, and whom it leads to."""
        self._over.set()
        for thread in self._threads:
            thread.join(120)


def ask(client: socket.socket) -> str:
    """Ask on a kept connection; returns the version that answered."""
    client.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = b""
    while b"}" not in answer:
        more = client.recv(65536)
        assert more, "the connection was closed"
        answer += more
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["version"])


@contextmanager
def crowd(box: Box, version: str) -> Iterator[Crowd]:
    """Clients during the block; at its end all were answered with 200, and every connection leads to `version`."""
    clients = Crowd(box)
    try:
        yield clients
    finally:
        clients.end()
    assert clients.broken == [], box.log()
    assert {status for status, _ in clients.statuses} == {200}
    assert {ask(client) for client in clients.idle} == {version}
    for client in clients.idle:
        client.close()


def test_two_copies_that_do_not_fit_are_refused_with_the_way_out(small_box: Box) -> None:
    """Exit code 3, the figures, and --strategy swap; what would not even fit alone is not told to swap."""
    said = small_box.glmctl("deploy", "1.1.0", expect=3).stderr
    assert "1.1.0 needs" in said
    assert "weights" in said
    assert "KV cache" in said
    assert "beside blue, which holds" in said
    assert "--strategy swap" in said
    assert small_box.json("status")["slots"]["green"]["state"] == "empty"
    small_box.host.policy.write_text('[memory]\nlimit = "60MiB"\n')
    said = small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", expect=3).stderr
    assert "engine.json" in said
    assert small_box.get("/version").json()["version"] == "1.0.0"


def test_a_unit_that_may_not_take_so_much_is_named(box: Box) -> None:
    """MemoryMax= below what the release needs: refused beforehand, not killed later."""
    box.drop_in("[Service]\nMemoryMax=100M\n")
    said = box.glmctl("deploy", "1.1.0", expect=3).stderr
    assert "MemoryMax= of glm@green.service allows 100 MiB" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_clients_wait_while_the_new_version_takes_the_place_of_the_old(small_box: Box, workers: int) -> None:
    """Whoever asks through the whole load gets 200s only, and no connection is closed, busy or idle."""
    if workers > 1:
        small_box.host.policy.write_text('[memory]\nlimit = "1400MiB"\n')
        small_box.configure(threads=1, workers=workers)
        small_box.glmctl("reload")
    with crowd(small_box, "1.1.0") as clients:
        wait_for(lambda: len(clients.statuses) > 20)
        done = small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", "--bake", "0")
        wait_for(lambda: clients.statuses[-1][1] == "1.1.0")
    assert "clients wait about" in done.stderr  # told before
    assert "4096 new connections" in done.stderr
    versions = [version for _, version in clients.statuses]
    assert set(versions) == {"1.0.0", "1.1.0"}
    record = small_box.json("history")["rollouts"][-1]
    assert (record["strategy"], record["outcome"]) == ("swap", "done")
    assert record["receipt"]["lost"] == 0
    assert record["receipt"]["adds_up"]
    assert record["pause_ms"] > 500  # somebody waited for a load, and it is told
    assert small_box.show("glm@blue.service", "ActiveState") == "inactive"


@pytest.mark.parametrize("fault", ["its checks", "its config"])
def test_a_version_that_fails_to_load_brings_the_old_one_back(
    small_box: Box, add_release: Callable[..., None], tmp_path: Path, fault: str
) -> None:
    """HUP brings the old workers back: exit code 4, 200s only, and the old version answers everybody."""
    if fault == "its checks":
        checks = tmp_path / "checks.json"
        checks.write_text('[{"question": "Hello", "answer": "certainly not what noise says"}]')
        add_release(small_box, "2.0.0", "--checks", str(checks))
    else:
        add_release(small_box, "2.0.0", change=_unreadable)
    with crowd(small_box, "1.0.0") as clients:
        wait_for(lambda: len(clients.statuses) > 20)
        small_box.glmctl("deploy", "2.0.0", "--strategy", "swap", expect=4)
    assert {version for _, version in clients.statuses} == {"1.0.0"}
    assert small_box.slots.live == "blue"
    assert small_box.generation("blue").generation == 1  # the same master: it was never stopped
    assert small_box.show("glm@green.service", "ActiveState") == "inactive"


def _unreadable(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 3  # what the weights are not made for
    (path / "config.json").write_text(json.dumps(config))


def test_a_load_that_takes_too_long_brings_the_old_one_back(small_box: Box) -> None:
    """--deadline: clients wait no longer than that for a new version."""
    with crowd(small_box, "1.0.0"):
        said = small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", "--deadline", "500ms", expect=4).stderr
    assert "1.1.0 was not ready after 0.5 s" in said
    small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", "--bake", "0")


def test_a_rollback_while_it_bakes_loads_the_old_version_again(small_box: Box) -> None:
    """From another terminal: the rollout swaps back, ends with 5, and every client is the old version's again."""
    with crowd(small_box, "1.0.0"):
        deploy = small_box.begin("deploy", "1.1.0", "--strategy", "swap", "--bake", "600s")
        small_box.await_phase(deploy, "bake")
        record = small_box.json("rollback")
        out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 5, out
    assert record["outcome"] == "rolled back"
    assert record["receipt"]["lost"] == 0
    assert small_box.show("glm@green.service", "ActiveState") == "inactive"


def test_a_candidate_that_dies_while_it_bakes_is_swapped_back(small_box: Box) -> None:
    """Kill -9 of the new master: the old version is loaded again by itself."""
    deploy = small_box.begin("deploy", "1.1.0", "--strategy", "swap", "--bake", "600s")
    small_box.await_phase(deploy, "bake")
    small_box.drop_in("[Service]\nRestart=no\n")
    kill(small_box.generation("green").master)
    out, _ = deploy.communicate(timeout=90)
    assert deploy.returncode == 5, out
    assert small_box.get("/version").json()["version"] == "1.0.0"


def test_what_outlasts_the_drain_deadline_is_cut_and_counted(small_box: Box) -> None:
    """The swap goes on, the receipt counts it, and the exit code is 6."""
    body = SHORT | {"max_tokens": 50_000, "stream": True}
    host, port = small_box.listen.split(":")
    client = socket.create_connection((host, int(port)), timeout=60)
    written = json.dumps(body)
    client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(written)}\r\n\r\n".encode())
    client.sendall(written.encode())
    assert client.recv(12) == b"HTTP/1.1 200"
    small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", "--bake", "0", "--drain", "500ms", expect=6)
    client.close()
    receipt = small_box.json("history")["rollouts"][-1]["receipt"]
    assert (receipt["cut"], receipt["lost"], receipt["adds_up"]) == (1, 1, True)
    assert small_box.get("/version").json()["version"] == "1.1.0"


def test_a_worker_that_drains_for_long_is_not_taken_for_a_hung_one(stocked_box: Box) -> None:
    """Gunicorn kills who gives no sign of life for `timeout`, 3 s here; a request that takes longer is not cut."""
    stocked_box.host.settings.write_text("GUNICORN_CMD_ARGS=--timeout 3\n")
    stocked_box.glmctl("deploy", "1.0.0")
    host, port = stocked_box.listen.split(":")
    body = json.dumps(SHORT).encode()
    with socket.create_connection((host, int(port)), timeout=120) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        slow.sendall(b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        swap = stocked_box.begin("deploy", "1.1.0", "--strategy", "swap", "--bake", "0")
        stocked_box.await_phase(swap, "vacate")
        for byte in body[:-1]:
            slow.sendall(bytes([byte]))
            time.sleep(8 / len(body))
        slow.sendall(body[-1:])
        assert slow.recv(12) == b"HTTP/1.1 200"
    said, _ = swap.communicate(timeout=60)
    assert swap.returncode == 0, said
    assert "Nothing was lost" in said


def test_a_canary_needs_a_second_copy(small_box: Box) -> None:
    """A usage error, before anything is looked at."""
    small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", "--canary", "10", expect=2)


def test_a_controller_that_dies_while_nobody_serves_needs_no_operator(small_box: Box) -> None:
    """Kill -9 of glmctl in the load: a timer ends the rollout, the old version is back, and nobody typed anything."""
    with crowd(small_box, "1.0.0"):
        deploy = small_box.begin("deploy", "1.1.0", "--strategy", "swap")
        small_box.await_phase(deploy, "start")
        kill(deploy.pid)
        deploy.communicate(timeout=60)
        wait_for(lambda: small_box.generation("blue").is_serving, 90, "the guard")
    wait_for(lambda: "glm-guard" not in small_box.systemctl("list-timers", "--all", "glm-guard*").stdout)
    record = small_box.json("history")["rollouts"][-1]
    assert (record["outcome"], record["reason"].split(":")[0]) == ("interrupted", "interrupted in start")
