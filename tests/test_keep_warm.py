"""The old slot after the bake: it is kept warm for the keep time, then it is retired."""

from __future__ import annotations

import pytest

from tests.box import Box, wait_for


def timers(box: Box) -> str:
    """Return the timers of scheduled retirements, as systemctl lists them."""
    return box.systemctl("list-timers", "--all", "glm-retire-*").stdout


def test_rollback_within_the_keep_time_loads_nothing(box: Box) -> None:
    """While the old slot is warm, a rollback is the rename alone, and so is the rollback of that rollback."""
    output = box.glmctl("deploy", "1.1.0", "--bake", "0", "--keep-warm", "10m").stderr
    assert "blue stays warm for 600 s" in output
    masters = [box.generation(slot).master for slot in ("blue", "green")]
    for version in ("1.0.0", "1.1.0"):
        record = box.json("rollback")
        assert [step["phase"] for step in record["steps"]] == ["rollback"]
        assert box.get("/version").json()["version"] == version
    assert [box.generation(slot).master for slot in ("blue", "green")] == masters


def test_old_slot_is_retired_after_the_keep_time(box: Box) -> None:
    """When the keep time is over, the old slot's unit is stopped and no worker is left; the live slot serves on."""
    box.glmctl("deploy", "1.1.0", "--bake", "0", "--keep-warm", "1s")
    wait_for(lambda: box.show("glm@blue.service", "ActiveState") == "inactive", what="the retirement")
    assert not any(generation.alive_workers for generation in box.generations("blue"))
    assert box.get("/version").json()["version"] == "1.1.0"
    wait_for(lambda: "glm-retire-blue" not in timers(box))


@pytest.mark.long
def test_retire_ends_the_keep_time(box: Box) -> None:
    """`glmctl retire` retires the old slot at once; it refuses the live one, and reports when there is none."""
    box.glmctl("deploy", "1.1.0", "--bake", "0", "--keep-warm", "10m")
    assert "glm-retire-blue" in timers(box)
    assert "green is live" in box.glmctl("retire", "green", expect=3).stderr
    assert box.json("retire", "--version", "0.9.0")["retired"] is None
    assert box.json("retire")["version"] == "1.0.0"
    assert box.show("glm@blue.service", "ActiveState") == "inactive"
    assert "glm-retire-blue" not in timers(box)
    assert "nothing to retire" in box.glmctl("retire").stdout


def test_rollout_cancels_the_retirement_of_its_slot(box: Box) -> None:
    """A slot that was kept warm and becomes the next candidate is not ended by the timer of the last deploy."""
    box.glmctl("deploy", "1.1.0", "--bake", "0", "--keep-warm", "10m")
    box.glmctl("deploy", "1.0.0", "--bake", "0", "--keep-warm", "10m")  # warm: no load
    assert box.get("/version").json()["version"] == "1.0.0"
    assert "glm-retire-blue" not in timers(box)
    assert "glm-retire-green" in timers(box)
