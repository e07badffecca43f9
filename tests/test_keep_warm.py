"""The old slot after the bake: warm for as long as the operator says, then its memory is free again."""

from __future__ import annotations

from tests.box import Box, wait_for


def timers(box: Box) -> str:
    """The retirements to come."""
    return box.systemctl("list-timers", "--all", "glm-retire-*").stdout


def test_a_rollback_within_the_keep_time_is_the_rename(box: Box) -> None:
    """The deploy has ended, the old slot is still warm: going back loads nothing, and can be taken back."""
    said = box.glmctl("deploy", "1.1.0", "--bake", "0", "--keep-warm", "10m").stderr
    assert "blue stays warm for 600 s" in said
    masters = [box.generation(slot).master for slot in ("blue", "green")]
    for version in ("1.0.0", "1.1.0"):
        record = box.json("rollback")
        assert [step["phase"] for step in record["steps"]] == ["rollback"]
        assert box.get("/version").json()["version"] == version
    assert [box.generation(slot).master for slot in ("blue", "green")] == masters


def test_after_the_keep_time_its_memory_is_free(box: Box) -> None:
    """By itself: no process of it is left, its unit is stopped, and the live slot serves on."""
    box.glmctl("deploy", "1.1.0", "--bake", "0", "--keep-warm", "1s")
    wait_for(lambda: box.show("glm@blue.service", "ActiveState") == "inactive", what="the retirement")
    assert not any(one.alive_workers for one in box.generations("blue"))
    assert box.get("/version").json()["version"] == "1.1.0"
    wait_for(lambda: "glm-retire-blue" not in timers(box))


def test_retire_by_hand(box: Box) -> None:
    """`glmctl retire` ends the keep time; it never touches the live slot, and says when there is nothing to do."""
    box.glmctl("deploy", "1.1.0", "--bake", "0", "--keep-warm", "10m")
    assert "glm-retire-blue" in timers(box)
    assert "green is live" in box.glmctl("retire", "green", expect=3).stderr
    assert box.json("retire", "--version", "0.9.0")["retired"] is None
    assert box.json("retire")["version"] == "1.0.0"
    assert box.show("glm@blue.service", "ActiveState") == "inactive"
    assert "glm-retire-blue" not in timers(box)
    assert "nothing to retire" in box.glmctl("retire").stdout


def test_a_new_rollout_forgets_the_retirement(box: Box) -> None:
    """What was kept warm is the next candidate's slot: a timer of the last deploy must not end it."""
    box.glmctl("deploy", "1.1.0", "--bake", "0", "--keep-warm", "10m")
    box.glmctl("deploy", "1.0.0", "--bake", "0", "--keep-warm", "10m")  # it is warm: no load
    assert box.get("/version").json()["version"] == "1.0.0"
    assert "glm-retire-blue" not in timers(box)
    assert "glm-retire-green" in timers(box)
