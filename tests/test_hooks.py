"""The operator's own commands around a cutover, and the file that names them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.box import Box


def configure(box: Box, **hooks: object) -> None:
    """Write glm.toml."""
    box.host.policy.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} = {json.dumps(value)}" for name, value in hooks.items()]
    box.host.policy.write_text("\n".join(["[hooks]", *lines]) + "\n")


def test_hooks_are_told_of_the_rollout_and_noted_in_the_history(box: Box, tmp_path: Path) -> None:
    """Each gets the rollout as JSON on stdin, in order; a failure after the cutover changes nothing."""
    heard = tmp_path / "heard"
    tell = tmp_path / "tell"
    tell.write_text(f"#!/bin/sh\n(cat; echo) >> {heard}\n")
    tell.chmod(0o755)
    configure(
        box, pre_cutover=[f"{tell} before"], post_cutover=["/nowhere/at-all", f"{tell} after"], on_rollback=[str(tell)]
    )
    done = box.glmctl("deploy", "1.1.0", "--bake", "0")
    assert "post_cutover hook `/nowhere/at-all` ended with 127" in done.stderr
    told = [json.loads(line) for line in heard.read_text().splitlines()]
    assert [(one["event"], one["version"], one["slot"]) for one in told] == [
        ("pre_cutover", "1.1.0", "green"),
        ("post_cutover", "1.1.0", "green"),
    ]
    record = box.json("history")["rollouts"][-1]
    assert [(one["when"], one["code"]) for one in record["hooks"]] == [
        ("pre_cutover", 0),
        ("post_cutover", 127),
        ("post_cutover", 0),
    ]
    with box.baking("1.0.0"):
        box.glmctl("rollback")
    assert [json.loads(line)["event"] for line in heard.read_text().splitlines()][-1] == "on_rollback"


def test_a_hook_may_refuse_the_cutover(box: Box) -> None:
    """Nothing goes live then, and the message says who refused and with which words."""
    configure(box, pre_cutover=["sh -c 'echo not on a Friday; exit 7'"])
    told = box.glmctl("deploy", "1.1.0", expect=4).stderr
    assert "ended with 7: not on a Friday" in told
    assert box.get("/version").json()["version"] == "1.0.0"
    assert box.show("glm@green.service", "ActiveState") == "inactive"


def test_a_hook_that_hangs_is_killed_with_what_it_began(box: Box, tmp_path: Path) -> None:
    """Its time is bounded, and so is that of its children, who hold the pipe."""
    configure(box, pre_cutover=[f"sh -c '(sleep 5; touch {tmp_path}/late) & sleep 600'"], timeout=1)
    began = time.monotonic()
    told = box.glmctl("deploy", "1.1.0", expect=4).stderr
    assert "was killed after 1 s" in told
    assert time.monotonic() - began < 60
    time.sleep(max(0.0, 6 - (time.monotonic() - began)))
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[hooks]\npre_cutovr = []\n", "hooks.pre_cutovr"),
        ("[hooks]\ntimeout = 0\n", "hooks.timeout"),
        ('[hooks]\npre_cutover = [" "]\n', "hooks.pre_cutover"),
        ("[hooks\n", "cannot be read"),
        ("\0", "cannot be read"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_before_anything_is_touched(box: Box, text: str, named: str) -> None:
    """The message names the key, or the line."""
    box.host.policy.parent.mkdir(parents=True, exist_ok=True)
    box.host.policy.write_text(text)
    told = box.glmctl("deploy", "1.1.0", expect=3).stderr
    assert named in told
    assert "glm.toml" in told
    assert box.show("glm@green.service", "ActiveState") == "inactive"
