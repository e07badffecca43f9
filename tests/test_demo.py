"""`glmctl demo`: a rollout under load in a private service manager."""

from __future__ import annotations

import subprocess

from tests.box import CODE


def test_demo_loses_no_request() -> None:
    """`glmctl demo --once` ends by itself, loses no request, and prints different answers of the two versions."""
    done = subprocess.run(["glmctl", "demo", "--once"], capture_output=True, text=True, timeout=180, cwd=CODE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing was lost" in done.stdout
    assert "requests and lost 0" in done.stdout
    before, after = done.stdout.find("1.0.0: a red thing\n"), done.stdout.find("1.1.0: a red circle\n")
    assert 0 < before < after, done.stdout
