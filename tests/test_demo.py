"""The demo is a promise too."""

from __future__ import annotations

import subprocess

from tests.box import CODE


def test_the_demo_plays_and_loses_nothing() -> None:
    """`glmctl demo --once` ends by itself, with 0 only if the receipt shows nothing lost."""
    done = subprocess.run(["glmctl", "demo", "--once"], capture_output=True, text=True, timeout=180, cwd=CODE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing was lost" in done.stdout
    assert "requests and lost 0" in done.stdout
