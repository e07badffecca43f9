"""The demo is a promise too."""

from __future__ import annotations

import subprocess

from tests.box import CODE


def test_the_demo_plays_and_loses_nothing() -> None:
    """`glmctl demo --once` ends by itself, with 0 only if the receipt shows nothing lost, and shows what changed."""
    done = subprocess.run(["glmctl", "demo", "--once"], capture_output=True, text=True, timeout=180, cwd=CODE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing was lost" in done.stdout
    assert "requests and lost 0" in done.stdout
    before, after = done.stdout.find("1.0.0 says: a red thing\n"), done.stdout.find("1.1.0 says: a red circle\n")
    assert 0 < before < after, done.stdout
