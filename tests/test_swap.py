"""The swap: on a host with memory for one copy the old version is unloaded, the new one loads, and clients wait."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from deploy.journal.journal import Journal
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
    """Clients that send requests in different ways, and idle connections."""

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
                    self.broken.append(f"{kind}: connection: close")
            except OSError as error:
                self.broken.append(f"{kind}: {error!r}")
                return
            self.statuses.append((answer.status, answer.getheader("x-model-version") or ""))
            if kind == "new":
                connection.close()
        connection.close()

    def end(self) -> None:
        """Stop the clients."""
        self._over.set()
        for thread in self._threads:
            thread.join(120)


def ask(client: socket.socket) -> str:
    """Send a request on an open connection; returns the version that answered."""
    client.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = b""
    while b"}" not in answer:
        more = client.recv(65536)
        assert more, "the connection was closed"
        answer += more
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["version"])


@contextmanager
def crowd(box: Box, version: str) -> Iterator[Crowd]:
    """Run clients during the block; all responses are 200, and every idle connection leads to `version` afterwards."""
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


@pytest.mark.model
def test_two_copies_that_do_not_fit_are_refused(small_box: Box) -> None:
    """Exit code 3 with the figures; swap is suggested only if one copy fits. Without a flag another way is chosen."""
    rehearsed = small_box.glmctl("deploy", "1.1.0", "--dry-run", "--json")
    assert json.loads(rehearsed.stdout)["strategy"] == "weights"
    assert "strategy   weights: 1.1.0 needs" in rehearsed.stderr
    stderr = small_box.glmctl("deploy", "1.1.0", "--strategy", "overlap", expect=3).stderr
    assert "1.1.0 needs" in stderr
    assert "weights" in stderr
    assert "KV cache" in stderr
    assert "beside blue, which holds" in stderr
    assert "--strategy swap" in stderr
    assert small_box.json("status")["slots"]["green"]["state"] == "empty"
    small_box.host.policy.write_text('[memory]\nlimit = "60MiB"\n')
    stderr = small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", expect=3).stderr
    assert "engine.json" in stderr
    assert small_box.get("/version").json()["version"] == "1.0.0"


def test_a_release_above_the_units_memory_limit_is_refused(box: Box) -> None:
    """MemoryMax= below the need of the release is refused in the preflight."""
    box.drop_in("[Service]\nMemoryMax=100M\n")
    stderr = box.glmctl("deploy", "1.1.0", "--strategy", "overlap", expect=3).stderr
    assert "MemoryMax= of glm@green.service allows 100.0 MiB" in stderr


@pytest.mark.model
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_clients_wait_while_the_new_version_takes_the_place_of_the_old(small_box: Box, workers: int) -> None:
    """All responses during the load are 200, and no connection is closed, busy or idle."""
    if workers > 1:
        small_box.host.policy.write_text('[memory]\nlimit = "1400MiB"\n')
        small_box.configure(threads=1, workers=workers)
        small_box.glmctl("reload")
    with crowd(small_box, "1.1.0") as clients:
        wait_for(lambda: len(clients.statuses) > 20)
        done = small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", "--bake", "0")
        wait_for(lambda: clients.statuses[-1][1] == "1.1.0")
    assert "clients wait about" in done.stderr  # announced in the preflight
    assert "4096 new connections" in done.stderr
    versions = [version for _, version in clients.statuses]
    assert set(versions) == {"1.0.0", "1.1.0"}
    record = small_box.json("history")["rollouts"][-1]
    assert (record["strategy"], record["outcome"]) == ("swap", "done")
    assert record["receipt"]["lost"] == 0
    assert record["receipt"]["adds_up"]
    assert record["pause_ms"] > 500  # a client waited for the load
    assert small_box.show("glm@blue.service", "ActiveState") == "inactive"


@pytest.mark.model
@pytest.mark.parametrize("fault", [pytest.param("its checks", marks=pytest.mark.long), "its config"])
def test_a_version_that_fails_to_load_brings_the_old_one_back(
    small_box: Box, add_release: Callable[..., None], tmp_path: Path, fault: str
) -> None:
    """The old workers are started again: exit code 4, all responses are 200 and of the old version."""
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
    config["text_config"]["num_attention_heads"] = 3  # does not match the weights
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.long
@pytest.mark.model
def test_a_load_that_takes_too_long_brings_the_old_one_back(small_box: Box) -> None:
    """Clients wait for --deadline at most."""
    with crowd(small_box, "1.0.0"):
        stderr = small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", "--deadline", "500ms", expect=4).stderr
    assert "1.1.0 was not ready after 0.5 s" in stderr
    small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", "--bake", "0")


def test_a_rollback_while_it_bakes_loads_the_old_version_again(small_box: Box) -> None:
    """`rollback` in another process: the rollout loads the old version again and exits with 5."""
    with crowd(small_box, "1.0.0"):
        deploy = small_box.begin("deploy", "1.1.0", "--strategy", "swap", "--bake", "600s")
        small_box.await_phase(deploy, "bake")
        record = small_box.json("rollback")
        out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 5, out
    assert record["outcome"] == "rolled back"
    assert record["receipt"]["lost"] == 0
    assert small_box.show("glm@green.service", "ActiveState") == "inactive"


@pytest.mark.long
def test_a_candidate_that_dies_while_it_bakes_is_swapped_back(small_box: Box) -> None:
    """Kill -9 of the new master: the rollout loads the old version again."""
    deploy = small_box.begin("deploy", "1.1.0", "--strategy", "swap", "--bake", "600s")
    small_box.await_phase(deploy, "bake")
    small_box.drop_in("[Service]\nRestart=no\n")
    kill(small_box.generation("green").master)
    out, _ = deploy.communicate(timeout=90)
    assert deploy.returncode == 5, out
    assert small_box.get("/version").json()["version"] == "1.0.0"


@pytest.mark.long
def test_requests_beyond_the_drain_deadline_are_cut_and_counted(small_box: Box) -> None:
    """The swap goes on, the receipt counts the request as cut, and the exit code is 6."""
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


@pytest.mark.long
def test_a_worker_that_drains_for_long_is_not_killed(stocked_box: Box) -> None:
    """Gunicorn kills a worker without a heartbeat for `timeout`, 3 s here; a request that takes longer is not cut."""
    with stocked_box.host.settings.open("a") as settings:
        settings.write("GUNICORN_CMD_ARGS=--timeout 3\n")
    stocked_box.glmctl("deploy", "1.0.0")
    host, port = stocked_box.listen.split(":")
    body = json.dumps(SHORT | {"max_tokens": 4000}).encode()  # 8 s of the dummy engine
    with socket.create_connection((host, int(port)), timeout=120) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        slow.sendall(b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        swap = stocked_box.begin("deploy", "1.1.0", "--strategy", "swap", "--bake", "0")
        stocked_box.await_phase(swap, "vacate")
        assert slow.recv(12) == b"HTTP/1.1 200"
    output, _ = swap.communicate(timeout=60)
    assert swap.returncode == 0, output
    assert "Nothing was lost" in output


def test_a_canary_needs_a_second_copy(small_box: Box) -> None:
    """--canary is a usage error."""
    small_box.glmctl("deploy", "1.1.0", "--strategy", "swap", "--canary", "10", expect=2)


@pytest.mark.long
def test_a_timer_ends_the_swap_of_a_killed_controller(small_box: Box) -> None:
    """Kill -9 of glmctl during the load: a timer ends the rollout, and the old version serves."""
    small_box.env["GLM_GUARD_SECONDS"] = "1"
    with crowd(small_box, "1.0.0"):
        deploy = small_box.begin("deploy", "1.1.0", "--strategy", "swap")
        small_box.await_phase(deploy, "start")
        kill(deploy.pid)
        deploy.communicate(timeout=60)
        wait_for(lambda: small_box.generation("blue").is_serving, 90, "the guard")
    wait_for(lambda: "glm-guard" not in small_box.systemctl("list-timers", "--all", "glm-guard*").stdout)
    wait_for(lambda: not Journal(small_box.host).unfinished(), what="the end of the rollout")
    record = small_box.json("history")["rollouts"][-1]
    assert (record["outcome"], record["reason"].split(":")[0]) == ("interrupted", "interrupted in start")
