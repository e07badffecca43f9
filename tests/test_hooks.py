"""The operator's hooks around a cutover, and the file that configures them."""

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


def test_hooks_get_the_rollout_and_are_recorded(box: Box, tmp_path: Path) -> None:
    """Each hook gets the rollout as JSON on stdin, in order; a failure after the cutover changes nothing."""
    received = tmp_path / "received"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\n(cat; echo) >> {received}\n")
    hook.chmod(0o755)
    configure(
        box, pre_cutover=[f"{hook} before"], post_cutover=["/nowhere/at-all", f"{hook} after"], on_rollback=[str(hook)]
    )
    done = box.glmctl("deploy", "1.1.0", "--bake", "0")
    assert "post_cutover hook `/nowhere/at-all` ended with 127" in done.stderr
    documents = [json.loads(line) for line in received.read_text().splitlines()]
    assert [(one["event"], one["version"], one["slot"]) for one in documents] == [
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
    assert [json.loads(line)["event"] for line in received.read_text().splitlines()][-1] == "on_rollback"


def test_a_pre_cutover_hook_can_refuse(box: Box) -> None:
    """The candidate does not become live, and the message has the hook's exit code and output."""
    configure(box, pre_cutover=["sh -c 'echo not on a Friday; exit 7'"])
    stderr = box.glmctl("deploy", "1.1.0", expect=4).stderr
    assert "ended with 7: not on a Friday" in stderr
    assert box.get("/version").json()["version"] == "1.0.0"
    assert box.show("glm@green.service", "ActiveState") == "inactive"


@pytest.mark.long
def test_a_hook_that_hangs_is_killed_with_its_children(box: Box, tmp_path: Path) -> None:
    """The timeout applies to the children too, which hold the pipe open."""
    configure(box, pre_cutover=[f"sh -c '(sleep 5; touch {tmp_path}/late) & sleep 600'"], timeout=1)
    began = time.monotonic()
    stderr = box.glmctl("deploy", "1.1.0", expect=4).stderr
    assert "was killed after 1 s" in stderr
    assert time.monotonic() - began < 60
    time.sleep(max(0.0, 6 - (time.monotonic() - began)))
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[hooks]\npre_cutovr = []\n", "hooks.pre_cutovr"),
        ("[hooks]\ntimeout = 0\n", "hooks.timeout"),
        ('[hooks]\npre_cutover = [" "]\n', "hooks.pre_cutover"),
        ("[hooks\n", "is not valid TOML"),
        ("\0", "is not valid TOML"),
    ],
)
def test_an_invalid_policy_is_refused_in_the_preflight(stocked_live: Box, text: str, named: str) -> None:
    """The message names the key or the line, and nothing was changed."""
    box = stocked_live
    box.host.policy.parent.mkdir(parents=True, exist_ok=True)
    box.host.policy.write_text(text)
    stderr = box.glmctl("deploy", "1.1.0", expect=3).stderr
    assert named in stderr
    assert "glm.toml" in stderr
    assert box.show("glm@green.service", "ActiveState") == "inactive"
