"""The digests of a release, as glmctl computes them."""

from __future__ import annotations

import os
import subprocess
import time

from deploy.errors import GlmError
from tests.bench.gpu.releases import GLMCTL, VERSIONS, Plan, shards
from tests.bench.gpu.report import Report

__all__ = ["measure"]


def measure(plan: Plan, report: Report) -> None:
    """Time `glmctl release verify`. `release add` was timed when the release was made, or by the run that made it."""
    size = sum(file.stat().st_size for file in shards(plan))
    env = os.environ | {"GLM_USER": "1", "GLM_ROOT": str(plan.root)}
    started = time.monotonic()
    with report.step("glmctl release verify"):
        done = subprocess.run([GLMCTL, "release", "verify", VERSIONS[0]], env=env, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode:
        raise GlmError(f"glmctl release verify: {done.stderr.strip()}")
    report.figure("digests.verify", seconds)
    report.figure("digests.verify_rate", size / seconds / 1e9)
