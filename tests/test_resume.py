"""A controller that dies: who reads changes nothing, and a timer, or `resume`, goes on with the rollout."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from deploy.journal.journal import Journal
from deploy.journal.record import Record
from tests.box import Box, kill, wait_for

QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "temperature": 0}


def state(box: Box) -> dict[str, object]:
    """Everything that a command could change: links, journal, the processes of both slots, timers."""
    files = [*box.host.root.iterdir(), *(box.host.state / "history").iterdir()]
    return {
        **{str(path): (path.lstat().st_mtime_ns, path.is_symlink() and path.readlink()) for path in files},
        **{
            slot: (box.generation(slot).master, box.show(f"glm@{slot}.service", "ActiveState"))
            for slot in ("blue", "green")
        },
        "timers": sorted(
            line.split()[-2] for line in box.systemctl("list-timers", "glm-*").stdout.splitlines() if "glm-" in line
        ),
    }


def kill_in_bake(box: Box, *words: str) -> Record:
    """Deploy 1.1.0, and kill the controller one second into its bake; returns the record that it left."""
    deploy = box.begin("deploy", "1.1.0", *words)
    box.await_phase(deploy, "bake")
    time.sleep(1)
    kill(deploy.pid)
    deploy.communicate(timeout=60)
    (record,) = Journal(box.host).unfinished()
    return record


def last(box: Box) -> Record:
    found = Journal(box.host).last()
    assert found is not None
    return found


def test_reading_changes_nothing(box: Box, tmp_path: Path) -> None:
    """Kill -9 one second into a ten-minute bake: every verb that reads tells it and what to do, and changes nothing."""
    kill_in_bake(box, "--bake", "10m")
    before = state(box)
    seen = tmp_path / "watched"
    with seen.open("w") as out:
        watch = subprocess.Popen(["glmctl", "status", "--watch"], env=box.env, stdout=out, stderr=out)
    for verb in ("status", "history", "release list", "doctor"):
        done = box.glmctl(*verb.split(), expect=1 if verb == "doctor" else 0)
        assert "the deploy of 1.1.0 was interrupted in bake, 9 m" in done.stderr
        assert "unwatched: `glmctl resume`, or `glmctl rollback`" in done.stderr
    document = box.json("status")
    assert document["rollout"]["interrupted"] is True
    assert "interrupted in bake" in document["summary"]
    (finding,) = [one for one in box.json("doctor", expect=1)["findings"] if not one["good"]]
    assert (finding["kind"], finding["fix"]) == ("interrupted", "glmctl resume, or glmctl rollback")
    wait_for(lambda: "deploy of 1.1.0 interrupted in bake" in seen.read_text(), what=seen.read_text())
    watch.send_signal(signal.SIGINT)
    watch.wait(30)
    assert state(box) == before
    box.glmctl("rollback")
    assert (last(box).kind, box.slots.live) == ("rollback", "blue")
    assert box.glmctl("status").stderr == ""


@pytest.fixture
def guarded_box(box: Box) -> Iterator[Box]:
    """A host whose guards look every second, and whose analysis judges 10 responses."""
    box.env["GLM_GUARD_SECONDS"] = "1"
    box.host.policy.write_text("[analysis]\nmin_requests = 10\n")
    yield box
    wait_for(lambda: "glm-guard" not in box.systemctl("list-timers", "--all", "glm-guard*").stdout, what="its end")


def test_a_timer_watches_an_interrupted_bake_to_its_end(guarded_box: Box) -> None:
    """The bake lasts as long as planned, the old slot is warm until then, and only then it is retired."""
    box = guarded_box
    record = kill_in_bake(box, "--bake", "12s")
    planned_end = time.monotonic() + 12 - record.seconds_in_phase
    wait_for(lambda: Journal(box.host).is_locked, 30, "the timer")
    assert box.json("status")["rollout"]["interrupted"] is False
    while time.monotonic() < planned_end - 1:
        assert box.generation("blue").is_serving
        assert box.slots.live == "green"
        time.sleep(0.1)
    wait_for(lambda: last(box).outcome, 60, "the end of the rollout")
    record = last(box)
    assert (record.outcome, record.reason) == ("done", "interrupted in bake")
    entered = {step.phase: datetime.fromisoformat(step.at) for step in record.steps}
    assert (entered["retire"] - entered["bake"]).total_seconds() >= 11.9
    assert [verdict.window for verdict in record.analysis] == ["bake"]
    wait_for(lambda: box.show("glm@blue.service", "ActiveState") == "inactive")
    assert box.get("/version").json()["version"] == "1.1.0"


@pytest.mark.long
def test_a_candidate_that_grows_worse_unwatched_is_rolled_back(guarded_box: Box) -> None:
    """The limits of the dead controller hold: what clients met since the bake began decides, also before the timer."""
    box = guarded_box
    box.env["GLM_GUARD_SECONDS"] = "6"
    kill_in_bake(box, "--bake", "10m", "--max-p95", "1ms")
    with httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=60) as client:
        until = time.monotonic() + 9
        while time.monotonic() < until and not last(box).outcome:
            assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200
    wait_for(lambda: last(box).outcome, 60, "the end of the rollout")
    record = last(box)
    assert record.outcome == "rolled back"
    assert (record.reason or "").startswith("interrupted in bake: p95 ")
    assert not record.by_operator
    assert box.get("/version").json()["version"] == "1.0.0"
    assert box.show("glm@green.service", "ActiveState") == "inactive"


def test_a_candidate_that_dies_unwatched_is_rolled_back(guarded_box: Box) -> None:
    """Kill -9 of the controller, then of the new master: the timer makes the old version live again."""
    box = guarded_box
    box.drop_in("[Service]\nRestart=no\n")
    kill_in_bake(box, "--bake", "10m")
    kill(box.generation("green").master)
    wait_for(lambda: last(box).outcome, 60, "the end of the rollout")
    assert last(box).outcome == "rolled back"
    assert box.get("/version").json()["version"] == "1.0.0"


@pytest.mark.long
def test_ctrl_c_is_not_an_interruption_that_is_left_over(box: Box) -> None:
    """Ctrl-C one second into a ten-minute bake goes back at once and says so; nothing is left to resume."""
    deploy = box.begin("deploy", "1.1.0", "--bake", "10m")
    box.await_phase(deploy, "bake")
    time.sleep(1)
    deploy.send_signal(signal.SIGINT)
    out, _ = deploy.communicate(timeout=60)
    assert out.splitlines()[-1] == "glmctl: interrupted in bake: 1.0.0 is live in blue, the deploy of 1.1.0 was undone"
    assert box.glmctl("status").stderr == ""
    assert box.glmctl("resume").stdout == "no rollout was interrupted\n"
    assert box.systemctl("list-timers", "--all", "glm-guard*").stdout.count("glm-guard") == 0


def test_resume_waits_for_no_rollout_that_runs(box: Box) -> None:
    """Exit code 7 while a rollout is running, and its guard does nothing."""
    box.env["GLM_GUARD_SECONDS"] = "1"
    with box.baking("1.1.0"):
        box.glmctl("resume", expect=7)
        time.sleep(3)
        assert last(box).phase == "bake"
        box.glmctl("rollback")


@pytest.mark.long
def test_the_same_deploy_again_goes_on_with_the_bake(box: Box) -> None:
    """`deploy` of the version whose bake was interrupted watches it to its end; any other command ends it at once."""
    record = kill_in_bake(box, "--bake", "8s")
    done = box.glmctl("deploy", "1.1.0")
    assert "1.1.0 is live already" in done.stdout
    ended = last(box)
    assert (ended.id, ended.outcome) == (record.id, "done")
    assert datetime.fromisoformat(ended.ended_at or "") >= datetime.fromisoformat(ended.steps[-2].at)
    assert (ended.seconds or 0) > 8
    deploy = box.begin("deploy", "1.0.0", "--bake", "10m")
    box.await_phase(deploy, "bake")
    kill(deploy.pid)
    deploy.communicate(timeout=60)
    box.glmctl("reload")
    ended = Journal(box.host).records()[-2]
    assert (ended.version, ended.outcome) == ("1.0.0", "done")
    assert "before its end" in (ended.reason or "")


@pytest.mark.long
def test_a_rollback_of_an_interrupted_swap_loads_the_old_version_again(box: Box) -> None:
    """The controller is dead and the old workers are gone: `rollback` does what the controller would have done."""
    kill_in_bake(box, "--bake", "10m", "--strategy", "swap")
    record = box.json("rollback")
    assert (record["version"], record["outcome"], record["by_operator"]) == ("1.1.0", "rolled back", True)
    assert box.get("/version").json()["version"] == "1.0.0"
    assert box.show("glm@green.service", "ActiveState") == "inactive"
    assert Journal(box.host).unfinished() == []


def test_a_bake_goes_on_after_a_reboot(guarded_box: Box) -> None:
    """The host loses its power in the bake: after the boot a timer watches the new version to the planned end."""
    box = guarded_box
    record = kill_in_bake(box, "--bake", "15s")
    planned_end = time.monotonic() + 15 - record.seconds_in_phase
    box.sandbox.lose_power()
    box.sandbox.boot()
    wait_for(lambda: last(box).outcome, 90, "the end of the rollout")
    assert time.monotonic() >= planned_end
    assert (last(box).outcome, last(box).reason) == ("done", "interrupted in bake")
    assert box.get("/version").json()["version"] == "1.1.0"
