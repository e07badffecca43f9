"""docs/tutorial.md, typed as it stands there, in a sandbox."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from deploy.systemd.sandbox import Sandbox
from tests.box import CODE
from tests.console import read, script

PAGE = (CODE / "docs/tutorial.md").read_text()
BY_HAND = PAGE[PAGE.index("## 2. ") : PAGE.index("## 5. ")]
LINES = [
    line.removeprefix("$ ")
    for block in re.findall(r"^```console\n(.*?)^```", BY_HAND, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
OUTSIDE = [". .venv/bin/activate", "glmctl sandbox -- bash"]  # how the shell of all others is reached
TIMEOUT = 900.0  # seconds, of all of it together


def test_the_tutorial_begins_with_a_sandbox_and_ends_with_a_rollback() -> None:
    """What the test below types are the lines between; each verb that the text is about is among them."""
    assert LINES[:2] == OUTSIDE
    verbs = [line.split()[1] for line in LINES if line.startswith("glmctl ")]
    assert verbs == [
        "sandbox",
        "release",
        "release",
        "deploy",
        "status",
        "deploy",
        "history",
        "rollback",
        "history",
        "doctor",
    ]


@pytest.mark.long
@pytest.mark.model
def test_the_tutorial_works_as_it_is_written() -> None:
    """Every line ends with 0, and the answers are those that the text promises."""
    with Sandbox() as box:
        words = [line.replace("127.0.0.1:8000", box.addresses.listen) for line in LINES[2:]]
        done = subprocess.run(
            ["bash"], input=script(words), env=box.env, cwd=CODE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        status = json.loads(subprocess.check_output(["glmctl", "status", "--json"], env=box.env))
    assert status["slots"][status["live"]]["version"] == "1.0.0", "rollback goes back to what served before"
    of = {line: one.output for line, one in zip(LINES[2:], read(done.stdout, words), strict=True)}
    head = next(text for line, text in of.items() if line.startswith("curl -si"))
    assert head.startswith("HTTP/1.1 200")
    assert "x-model-version: 1.0.0" in head.lower()
    deploy = next(text for line, text in of.items() if "--canary" in line)
    assert "1.1.0 is live in green (before: 1.0.0)" in deploy
    assert "Nothing was lost" in deploy
    assert "BAD" not in of["glmctl doctor"]
