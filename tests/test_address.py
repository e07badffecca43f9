"""The public address: nothing changes it while it serves, and no rollout succeeds on a host that has lost it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from deploy.journal.receipt import Receipt
from deploy.reports.report import receipt_sentence
from service.contract import processes
from tests.box import Box, live_host, wait_for


@pytest.fixture
def other() -> Iterator[str]:
    """Another address, bound but not listening: systemd can listen on it, and no other process is given it."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"


def edit(box: Box, other: str) -> None:
    """The unit file is changed, and nothing reads it yet."""
    file = box.host.units / "glm.socket"
    file.write_text(re.sub(r"(?m)^ListenStream=.*$", f"ListenStream={other}", file.read_text()))


def edit_and_reload(box: Box, other: str) -> None:
    edit(box, other)
    assert box.systemctl("daemon-reload").returncode == 0


def there_and_back(box: Box, other: str) -> None:
    """The address is the right one again, but systemd has closed its socket meanwhile."""
    edit_and_reload(box, other)
    edit_and_reload(box, box.listen)


def stop(box: Box, other: str) -> None:
    assert box.systemctl("stop", "glm.socket").returncode == 0


def restart(box: Box, other: str) -> None:
    """The live slot has the address still, so that systemd cannot listen on it again."""
    assert box.systemctl("restart", "glm.socket").returncode != 0


def restart_while_the_live_slot_is_awaited(box: Box, other: str) -> None:
    """As long as glm-live.service runs, which waits for the live slot to load, systemd refuses to start the socket."""
    waiting = box.host.units / "glm-live.service.d/wait.conf"
    waiting.parent.mkdir()
    waiting.write_text("[Service]\nExecStart=\nExecStart=/bin/sleep 600\n")
    box.systemctl("daemon-reload")
    assert box.systemctl("start", "glm-live.service").returncode == 0
    restart(box, other)


def run(box: Box, commands: str) -> None:
    """Run what a message or a finding tells an operator to run."""
    done = subprocess.run(["sh", "-c", commands], env=box.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (commands, done.stdout, done.stderr)


def findings(box: Box, *, good: bool) -> list[dict[str, str]]:
    found = box.json("doctor", expect=None)["findings"]
    return [finding for finding in found if finding["good"] is good]


@pytest.mark.parametrize(
    "damage",
    [
        *(edit, restart_while_the_live_slot_is_awaited),
        *(pytest.param(damage, marks=pytest.mark.long) for damage in (edit_and_reload, restart, stop, there_and_back)),
    ],
)
def test_doctor_finds_a_lost_socket_and_its_fix_works(box: Box, other: str, damage: Callable[[Box, str], None]) -> None:
    """Doctor's first complaint is of glm.socket; its fix makes doctor content, and a deploy move every client.

    Where a slot that is started would be unreachable, a deploy is refused before anything is changed.
    """
    assert findings(box, good=False) == []
    damage(box, other)
    finding = findings(box, good=False)[0]
    assert "glm.socket" in finding["what"]
    if damage is not edit:
        error = box.json("deploy", "1.1.0", expect=3)["error"]
        assert error["message"] == finding["what"]
        assert error["hint"].startswith(finding["fix"])
        assert box.show("glm@green.service", "ActiveState") == "inactive"
    run(box, finding["fix"])
    assert findings(box, good=False) == []
    record = box.json("deploy", "1.1.0", "--bake", "0")
    assert record["switch_ms"] is not None
    address = box.json("status")["listen"]
    assert httpx.get(f"http://{address}/version", trust_env=False).json()["version"] == "1.1.0"


@pytest.mark.alone
def test_an_address_changes_while_it_serves(box: Box, other: str, tmp_path: Path) -> None:
    """`install` refuses another address, and the commands of its hint change it under load: nothing is lost.

    In between both addresses are served; at the end the former one refuses connections, and `install` without an option
    keeps the new one.
    """
    former = box.listen
    with box.load(tmp_path, scale=0.5) as load:
        error = box.json("install", "--listen", other, expect=3)["error"]
        assert former in error["message"]
        add, remove = error["hint"].partition("   (")[0].split(" && ")
        run(box, add)
        assert box.json("listen", "list") == {"addresses": [former, other]}
        assert box.json("install")["changed"] == []
        assert findings(box, good=False) == []
        assert answers(former)
        assert answers(other)
    report = load.stop()
    assert report.ok
    assert report.lost == 0
    limits = httpx.Limits(keepalive_expiry=None)
    with httpx.Client(base_url=f"http://{former}", trust_env=False, limits=limits) as kept:
        kept.get("/version")
        run(box, remove)
        assert kept.get("/version").headers["x-slot"] == "blue", "kept, and in the slot of the second move"
    assert findings(box, good=False) == []
    assert box.json("status")["listen"] == other
    assert answers(other)
    assert not answers(former)
    assert box.json("install")["changed"] == []
    assert "only address" in box.json("listen", "remove", other, expect=3)["error"]["message"]
    box.glmctl("install", "--listen", "localhost:8000", expect=2)


def test_an_address_in_use_by_another_is_refused(box: Box) -> None:
    """The new address cannot be opened: nothing has changed, and the former one serves."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in box.json("listen", "add", address, expect=3)["error"]["message"]
    assert box.json("listen", "list") == {"addresses": [box.listen]}
    assert not (box.host.units / "glm-joining.socket").exists()
    assert findings(box, good=False) == []
    assert answers(box.listen)


def test_a_descriptor_that_is_closed_meanwhile_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager opens and closes descriptors while they are listed; what is left is looked at."""
    readlink = os.readlink

    def close_first(path: Path) -> str:
        if path.name == "0":
            raise FileNotFoundError(path)
        return readlink(path)

    monkeypatch.setattr(os, "readlink", close_first)
    with socket.socket() as own:
        assert f"socket:[{os.fstat(own.fileno()).st_ino}]" in processes.descriptors(os.getpid())


def test_starting_what_serves_changes_nothing(box: Box) -> None:
    """A unit that is started gets the listening socket too; it stays non-blocking, and no worker hangs in accept()."""
    [worker] = box.generation("blue").alive_workers
    state = box.host.runtime / f"blue/1/{worker.pid}.json"
    for unit in ("glm-live.service", "glm.target", "glm.socket", "glm@blue.service"):
        box.systemctl("start", unit)
        box.get("/version")
        written = state.stat().st_mtime_ns
        wait_for(lambda: state.stat().st_mtime_ns > written, 5, f"after {unit} the next write of the worker's state")  # noqa: B023


def test_a_slot_without_a_listening_socket_does_not_start(box: Box, other: str) -> None:
    """Without the socket that systemd promised, the server ends with the reason, and listens on no other address."""
    there_and_back(box, other)
    box.slots.point("green", "releases/1.1.0")
    assert box.systemctl("start", "glm@green.service").returncode != 0
    assert "glm.socket passed no listening socket" in box.show("glm@green.service", "StatusText")
    assert box.show("glm@green.service", "ExecMainStatus") == "3"


def test_a_cutover_that_no_client_sees_is_undone(box: Box, other: str, tmp_path: Path) -> None:
    """The new slot is not reachable at the address of the host: exit code 4, and the old version is live as before."""
    hook = tmp_path / "hook"
    hook.write_text(
        f"#!/bin/sh\nsed -i s/^ListenStream=.*/ListenStream={other}/ {box.host.units}/glm.socket\n"
        "systemctl --user daemon-reload\n"
    )
    hook.chmod(0o755)
    box.host.policy.parent.mkdir(parents=True, exist_ok=True)
    box.host.policy.write_text(f'[hooks]\npre_cutover = ["{hook}"]\n')
    stderr = box.glmctl("deploy", "1.1.0", expect=4).stderr
    assert f"did not respond on {other}" in stderr
    assert box.slots.live == "blue"
    record = box.json("history")["rollouts"][-1]
    assert (record["outcome"], record["switch_ms"]) == ("not ready", None)
    assert box.get("/version").json()["version"] == "1.0.0"
    assert box.show("glm@green.service", "ActiveState") == "inactive"


def test_a_first_deploy_that_no_client_sees_leaves_nothing_live(stocked_box: Box, other: str, tmp_path: Path) -> None:
    """Nothing was live before, and nothing is live afterwards: no link leads to a slot that was stopped."""
    box = stocked_box
    box.host.policy.parent.mkdir(parents=True, exist_ok=True)
    box.host.policy.write_text(f'[hooks]\npre_cutover = ["sed -i s/{box.listen}/{other}/ {box.host.units}/glm.socket", '
                               '"systemctl --user daemon-reload"]\n')  # fmt: skip
    box.glmctl("deploy", "1.0.0", expect=4)
    assert box.slots.live is None


def test_a_server_started_by_hand_needs_an_address(stocked_live: Box, other: str, tmp_path: Path) -> None:
    """`python -m service` without systemd is refused unless GLM_BIND names an address, which it then serves."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LISTEN_", "NOTIFY_"))}
    env |= {"GLM_ROOT": str(stocked_live.host.root), "GLM_RUNTIME": str(tmp_path), "GLM_SLOT": "blue"}
    env |= {"GLM_ENGINE": "dummy", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    command = [sys.executable, "-m", "service"]
    refused = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 3
    assert "GLM_BIND" in refused.stderr
    with subprocess.Popen(command, env=env | {"GLM_BIND": other}, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: answers(other), 60, "the server")
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def stocked_live(checkpoints: dict[str, Path]) -> Iterator[Box]:
    with live_host(checkpoints, "dummy") as box:
        yield box


def answers(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/version", timeout=1, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize(
    ("accepted", "probes", "proves"), [(0, 0, False), (1, 1, False), (12, 12, False), (1, 0, True), (12, 3, True)]
)
def test_a_receipt_without_clients_is_no_proof(accepted: int, probes: int, proves: bool) -> None:
    """The sentence "Nothing was lost" is used only for requests that clients sent."""
    sentence = receipt_sentence(Receipt(accepted=accepted, completed=accepted, probes=probes))
    assert ("Nothing was lost" in sentence) is proves
