"""A crash at any step leaves one version serving; the next command that changes something ends the rollout."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from datetime import datetime

import pytest

from deploy.journal.journal import Journal
from tests.box import Box, kill, wait_for


def test_a_rollback_ends_a_deploy_that_was_killed_while_it_baked(box: Box) -> None:
    """Kill -9 in the bake, then `rollback`: the old slot is still warm, and the rename is enough."""
    deploy = box.begin("deploy", "1.1.0", "--bake", "600s")
    box.await_phase(deploy, "bake")
    kill(deploy.pid)
    deploy.communicate(timeout=60)
    done = box.glmctl("rollback")
    assert "interrupted in bake" in done.stderr
    assert box.get("/version").json()["version"] == "1.0.0"
    rollouts = box.json("history")["rollouts"]
    assert [one["outcome"] for one in rollouts[-2:]] == ["rolled back", "done"]


def test_the_receipt_covers_the_time_of_a_killed_controller(box: Box) -> None:
    """Kill -9 in the bake: the record has the requests of the old version, and the whole duration."""
    deploy = box.begin("deploy", "1.1.0", "--canary", "0.001", "--step", "pause", "--bake", "600s")
    box.await_phase(deploy, "canary")
    for _ in range(7):
        assert box.get("/version").headers["x-slot"] == "blue"
    box.glmctl("promote")
    box.await_phase(deploy, "bake")
    for _ in range(3):
        assert box.get("/version").headers["x-slot"] == "green"
    kill(deploy.pid)
    deploy.communicate(timeout=60)
    (kept,) = (box.host.state / "history").glob("*.before")
    assert "interrupted in bake" in box.glmctl("retire").stderr
    record = box.json("history")["rollouts"][-1]
    by_slot = {line["slot"]: line for line in record["receipt"]["lines"]}
    assert record["reason"].startswith("interrupted in bake")
    assert by_slot["blue"]["completed"] >= 7
    assert by_slot["green"]["completed"] >= 3
    assert (record["receipt"]["adds_up"], record["receipt"]["lost"]) == (True, 0)
    steps = [datetime.fromisoformat(step["at"]) for step in record["steps"]]
    assert record["seconds"] >= (steps[-1] - steps[0]).total_seconds()
    assert not kept.exists()


def test_the_controller_killed_while_it_reloads(box: Box) -> None:
    """Kill -9 of glmctl during a reload: systemd completes it, and `resume` reports the result."""
    reload = box.begin("reload", "1.1.0")
    wait_for(lambda: box.show("glm@blue.service", "ActiveState") == "reloading")
    kill(reload.pid)
    reload.communicate(timeout=60)
    assert "reload of 1.1.0 was interrupted in reload: 1.1.0 serves" in box.glmctl("resume").stdout
    assert box.get("/version").json()["version"] == "1.1.0"
    assert len([one for one in box.generations("blue") if one.is_alive]) == 1


def test_a_reload_that_fails_leaves_the_old_generation_serving(box: Box, add_release: Callable[..., None]) -> None:
    """The new generation does not become ready: exit code 4, the symlink is restored, the old generation serves."""
    add_release(box, "2.0.0", change=lambda path: (path / "config.json").write_text("{"))
    before = box.generation("blue").master
    stderr = box.glmctl("reload", "2.0.0", expect=4).stderr
    assert "config.json" in stderr
    assert box.generation("blue").master == before
    assert box.slots.version("blue") == "1.0.0"
    assert box.get("/version").json()["version"] == "1.0.0"
    assert box.json("reload")["outcome"] == "done"


def test_a_reload_without_a_new_generation_names_the_log(box: Box) -> None:
    """The reload command fails by itself: the message does not take the state of the generation that serves for it."""
    box.drop_in("[Service]\nExecReload=\nExecReload=/bin/false\n")
    stderr = box.glmctl("reload", expect=4).stderr
    assert "no new generation appeared" in " ".join(stderr.split())
    assert "ended before it was ready" not in stderr
    assert box.get("/version").json()["version"] == "1.0.0"


def test_a_rollback_killed_at_its_rename(box: Box) -> None:
    """Kill -9 of a warm rollback: one version serves, and `resume` completes the rollback."""
    output = ""
    with box.baking("1.1.0"):
        rollback = box.begin("rollback")
        wait_for(lambda: any(one.kind == "rollback" for one in Journal(box.host).unfinished()))
        kill(rollback.pid)
        rollback.communicate(timeout=60)
        assert box.get("/version").status_code == 200
        if box.slots.live == "green":  # killed before the rename: the deploy is still in its bake
            output = box.glmctl("rollback").stderr
    output += box.glmctl("resume").stdout
    assert "rollback of 1.0.0 was interrupted" in output
    assert box.get("/version").json()["version"] == "1.0.0"
    assert all(record["outcome"] for record in box.json("history")["rollouts"])


def test_ctrl_c_before_cutover_undoes(box: Box) -> None:
    """Ctrl-C during the load: the candidate is stopped, and the live version is not touched."""
    deploy = box.begin("deploy", "1.1.0")
    box.await_phase(deploy, "start")
    deploy.send_signal(signal.SIGINT)
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 130
    assert "glmctl: interrupted in start: 1.0.0 is live in blue, the deploy of 1.1.0 was undone" in out
    assert box.json("status")["rollout"]["outcome"] == "interrupted"
    assert box.show("glm@green.service", "ActiveState") == "inactive"
    assert box.get("/version").json()["version"] == "1.0.0"


def test_ctrl_c_in_the_bake_rolls_back(box: Box) -> None:
    """Ctrl-C while both versions are loaded: the old version is live again, and the candidate is stopped."""
    deploy = box.begin("deploy", "1.1.0", "--bake", "600s")
    box.await_phase(deploy, "bake")
    deploy.send_signal(signal.SIGINT)
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 130, out
    assert "glmctl: interrupted in bake: 1.0.0 is live in blue, the deploy of 1.1.0 was undone" in out
    record = box.json("history")["rollouts"][-1]
    assert (record["outcome"], record["steps"][-1]["phase"]) == ("interrupted", "rollback")
    assert record["receipt"]["lost"] == 0
    assert box.show("glm@green.service", "ActiveState") == "inactive"
    assert box.get("/version").json()["version"] == "1.0.0"


def test_ctrl_c_while_the_old_slot_is_retired(box: Box) -> None:
    """Ctrl-C after the bake: the new version stays live, the old unit is stopped, and the rollout is done."""
    host, port = box.listen.split(":")
    body = b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}'
    with socket.create_connection((host, int(port)), timeout=60) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        slow.sendall(b"content-length: %d\r\n\r\n" % len(body))
        deploy = box.begin("deploy", "1.1.0", "--bake", "0")
        box.await_phase(deploy, "retire")
        deploy.send_signal(signal.SIGINT)
        slow.sendall(body)
        assert slow.recv(12) == b"HTTP/1.1 200"
        out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 130, out
    assert "glmctl: interrupted in retire: 1.1.0 is live in green, the deploy of 1.1.0 is done" in out
    record = box.json("history")["rollouts"][-1]
    assert (record["outcome"], record["reason"]) == ("done", "interrupted from the keyboard")
    assert box.show("glm@blue.service", "ActiveState") == "inactive"
    assert box.get("/version").json()["version"] == "1.1.0"


@pytest.mark.long
def test_the_old_worker_killed_after_cutover(box: Box) -> None:
    """Kill -9 of blue's worker in the bake: the new version serves, and the deploy is done."""
    deploy = box.begin("deploy", "1.1.0", "--bake", "2s")
    box.await_phase(deploy, "bake")
    kill(box.generation("blue").alive_workers[0].pid)
    assert box.get("/version").json()["version"] == "1.1.0"
    out, _ = deploy.communicate(timeout=90)
    assert deploy.returncode == 0, out


def test_a_candidate_that_dies_in_its_bake_is_rolled_back(box: Box) -> None:
    """Kill -9 of the new master in the bake: the old version is live again, and the exit code is 5."""
    deploy = box.begin("deploy", "1.1.0", "--bake", "600s")
    box.await_phase(deploy, "bake")
    kill(box.generation("green").master)
    out, _ = deploy.communicate(timeout=90)
    assert deploy.returncode == 5, out
    assert box.slots.live == "blue"
    assert box.get("/version").json()["version"] == "1.0.0"
    assert box.show("glm@green.service", "ActiveState") == "inactive"


def test_the_live_worker_killed(box: Box) -> None:
    """Kill -9 of the only live worker: new clients wait for its replacement."""
    before = box.generation("blue").alive_workers[0].pid
    kill(before)
    assert box.get("/version").json()["pid"] != before


def test_the_live_master_killed(box: Box) -> None:
    """Kill -9 of the live master: systemd restarts the slot, and new clients wait for it."""
    before = box.generation("blue").master
    kill(before)
    wait_for(lambda: box.show("glm@blue.service", "MainPID") not in {str(before), "0"})
    assert box.get("/version").json()["version"] == "1.0.0"


def test_a_hung_master_is_restarted(box: Box) -> None:
    """SIGSTOP of the live master: its watchdog expires, and the slot is restarted."""
    box.drop_in("[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\n")
    box.systemctl("restart", "glm@blue.service")
    before = box.generation("blue").master
    os.kill(before, signal.SIGSTOP)
    wait_for(lambda: box.show("glm@blue.service", "MainPID") not in {str(before), "0"}, 40)
    assert box.get("/version").json()["version"] == "1.0.0"


def test_signals_to_the_live_master_keep_connections(box: Box) -> None:
    """HUP replaces the workers, WINCH and HUP stop and start them: a keep-alive client keeps its connection."""
    import httpx

    master = box.generation("blue").master
    with httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=60) as client:
        first = client.get("/version")
        port = first.extensions["network_stream"].get_extra_info("client_addr")[1]
        for signals in ((signal.SIGHUP,), (signal.SIGWINCH, signal.SIGHUP)):
            pid = client.get("/version").json()["pid"]
            for number in signals:
                os.kill(master, number)
                if number == signal.SIGWINCH:
                    wait_for(lambda: not box.generation("blue").alive_workers)
            wait_for(lambda pid=pid: pid not in {one.pid for one in box.generation("blue").alive_workers})  # type: ignore[misc]
            answer = client.get("/version")
            assert answer.json()["pid"] != pid
            assert answer.extensions["network_stream"].get_extra_info("client_addr")[1] == port
    assert box.generation("blue").master == master


def test_a_hung_worker_is_replaced(box: Box) -> None:
    """SIGSTOP of the only live worker: the master replaces it, and new clients wait."""
    before = box.generation("blue").alive_workers[0].pid
    os.kill(before, signal.SIGSTOP)
    wait_for(lambda: before not in {one.pid for one in box.generation("blue").alive_workers}, 60)
    assert box.get("/version").json()["pid"] != before
